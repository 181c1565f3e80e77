//! How far a run is: bars on a terminal, one line per change elsewhere.
//!
//! Both are told the same: the run as a whole, whenever it was read; what an environment's builder does; what running
//! tasks report. Neither asks for anything.

use std::collections::BTreeMap;
use std::time::Duration;

use eclosion_schemas::ops::run::GetReply;
use eclosion_schemas::view::{TaskReport, TaskState, TaskView};
use eclosion_schemas::{Attempt, TaskId};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Deserialize;

use super::{duration, run, word};
use crate::terminal::{one_line, relay, talk};

/// Running tasks with a line of their own; more are only counted.
const LINES_MAX: usize = 12;
const TICK: Duration = Duration::from_millis(120);

/// What the builder of an environment publishes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Building {
    pub(crate) phase: String,
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) done: Option<u64>,
    #[serde(default)]
    pub(crate) total: Option<u64>,
}

impl Building {
    fn line(&self) -> String {
        match (self.done, self.total) {
            (Some(done), Some(total)) => format!("environment: {} ({done} of {total})", self.text),
            _ => format!("environment: {}", self.text),
        }
    }
}

pub(crate) struct Progress {
    changes: Changes,
    bars: Option<Bars>,
}

/// Says things without tearing the bars.
#[derive(Clone)]
pub(crate) struct Voice(Option<MultiProgress>);

impl Voice {
    pub(crate) fn say(&self, text: &str) {
        match &self.0 {
            Some(bars) => bars.suspend(|| talk(text)),
            None => talk(text),
        }
    }
}

impl Progress {
    pub(crate) fn new(draws: bool) -> Self {
        Self { changes: Changes::default(), bars: draws.then(Bars::new) }
    }

    pub(crate) fn voice(&self) -> Voice {
        Voice(self.bars.as_ref().map(|bars| bars.all.clone()))
    }

    pub(crate) fn update(&mut self, found: &GetReply) {
        let lines = self.changes.between(found);
        match &mut self.bars {
            Some(bars) => {
                // Bars show what runs; what went wrong must not vanish with its bar.
                let voice = Voice(Some(bars.all.clone()));
                lines.iter().filter(|line| line.is_trouble).for_each(|line| voice.say(&line.text));
                bars.update(found);
            }
            None => lines.iter().for_each(|line| relay(&line.text)),
        }
    }

    pub(crate) fn building(&mut self, building: &Building) {
        let line = building.line();
        match &mut self.bars {
            Some(bars) => bars.head.set_message(one_line(&line)),
            None if self.changes.is_new(building) => talk(&line),
            None => {}
        }
    }

    /// Only bars show it: a log would grow with every fold of every task.
    pub(crate) fn report(&mut self, task: &TaskId, report: &TaskReport) {
        if let Some(bars) = &mut self.bars {
            bars.report(task, report);
        }
    }

    /// A value that a running task has yielded; all of them are in its result.
    pub(crate) fn item(&self, task: &TaskId, value: &str) {
        self.voice().say(&format!("{task}: {value}"));
    }

    /// Takes the bars off the screen.
    pub(crate) fn end(self) {
        if let Some(bars) = self.bars {
            let _ = bars.all.clear();
        }
    }
}

#[derive(Debug, PartialEq)]
struct Line {
    text: String,
    is_trouble: bool,
}

/// What was said last, so that only changes are said.
#[derive(Default)]
struct Changes {
    tasks: BTreeMap<TaskId, (TaskState, Attempt)>,
    building: Option<(String, Option<u64>)>,
    is_begun: bool,
}

impl Changes {
    fn between(&mut self, found: &GetReply) -> Vec<Line> {
        let mut lines = Vec::new();
        for task in &found.tasks {
            let state = (task.state, task.attempt);
            let before = self.tasks.insert(task.task.clone(), state);
            // Who attaches late is told what is, and not again what was.
            let was_over = !self.is_begun && task.state == TaskState::Succeeded;
            if before != Some(state) && !was_over {
                lines.extend(line(task));
            }
        }
        if !self.is_begun {
            let over = found.tasks.iter().filter(|task| task.state == TaskState::Succeeded).count();
            if over > 0 {
                lines.insert(
                    0,
                    Line { text: format!("{over} tasks were finished before"), is_trouble: false },
                );
            }
        }
        self.is_begun = true;
        lines
    }

    /// A builder counts faster than a log should grow: a line for each phase, and one for each tenth.
    fn is_new(&mut self, building: &Building) -> bool {
        let tenth = match (building.done, building.total) {
            (Some(done), Some(total)) if total > 0 => Some(done.saturating_mul(10) / total),
            _ => None,
        };
        let now = (building.phase.clone(), tenth);
        let is_new = self.building.as_ref() != Some(&now);
        self.building = Some(now);
        is_new
    }
}

fn line(task: &TaskView) -> Option<Line> {
    let took = || run::took(task).unwrap_or_else(|| duration(0));
    let again = if task.attempt > Attempt(1) { format!(", attempt {}", task.attempt) } else { String::new() };
    let why = || task.error.as_ref().map_or_else(String::new, |why| format!(": {}", why.message));
    let (text, is_trouble) = match task.state {
        TaskState::Waiting | TaskState::Ready => return None,
        TaskState::Running => match lost(task) {
            Some(why) => (format!("{} runs{again}: {why}", task.task), true),
            None => (format!("{} runs{again}", task.task), false),
        },
        TaskState::Succeeded => (format!("{} succeeded in {}{again}", task.task, took()), false),
        TaskState::Backoff => (format!("{} failed and is tried again{}", task.task, why()), true),
        TaskState::Failed => (format!("{} failed{}", task.task, why()), true),
        TaskState::Cancelled | TaskState::Skipped => (format!("{} {}", task.task, word(&task.state)), false),
    };
    Some(Line { text, is_trouble })
}

/// How the worker of the attempt before this one ended, if that is why there is another.
fn lost(task: &TaskView) -> Option<String> {
    let dead = task
        .certificates
        .iter()
        .rev()
        .find(|dead| dead.attempt.is_some_and(|attempt| attempt.0 + 1 == task.attempt.0))?;
    Some(format!("worker {} {}", dead.worker, dead.death))
}

struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    running: BTreeMap<TaskId, Row>,
    /// Reports that came before the run was read again; until then at most one for each task.
    early: BTreeMap<TaskId, Said>,
}

/// A running attempt: its line on the screen.
struct Row {
    bar: ProgressBar,
    attempt: Attempt,
    said: Said,
}

impl Row {
    fn text(&self, task: &TaskId) -> String {
        let again = if self.attempt > Attempt(1) { format!("#{}", self.attempt) } else { String::new() };
        one_line(&format!("{task}{again}{}{}", self.said.progress, self.said.metric))
    }

    fn draw(&self, task: &TaskId) {
        self.bar.set_message(self.text(task));
    }
}

/// What an attempt reported last.
#[derive(Debug, Default)]
struct Said {
    progress: String,
    metric: String,
}

impl Said {
    fn note(&mut self, report: &TaskReport) {
        match report {
            TaskReport::Progress { done, total: Some(total), text } if *total > 0.0 => {
                self.progress = format!(" {:.0}% {text}", done / total * 100.0);
            }
            TaskReport::Progress { text, .. } => self.progress = format!(" {text}"),
            TaskReport::Metric { name, value, .. } => self.metric = format!(", {name} {value:.4}"),
            TaskReport::Item { .. } => {}
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new(0));
        head.set_style(style("{spinner} [{bar:24}] {pos}/{len} {elapsed} {msg}"));
        head.enable_steady_tick(TICK);
        Self { all, head, running: BTreeMap::new(), early: BTreeMap::new() }
    }

    fn update(&mut self, found: &GetReply) {
        let over = |task: &&TaskView| matches!(task.state, TaskState::Succeeded | TaskState::Failed);
        self.head.set_length(found.tasks.len() as u64);
        self.head.set_position(found.tasks.iter().filter(over).count() as u64);
        let running: BTreeMap<_, _> = found
            .tasks
            .iter()
            .filter(|task| task.state == TaskState::Running)
            .map(|task| (&task.task, task.attempt))
            .collect();
        if !running.is_empty() {
            self.head.set_message(format!("{} run", running.len()));
        }
        let all = &self.all;
        self.running.retain(|task, row| {
            let runs = running.get(task) == Some(&row.attempt);
            if !runs {
                row.bar.finish_and_clear();
                all.remove(&row.bar);
            }
            runs
        });
        for (task, attempt) in running {
            if !self.running.contains_key(task) && self.running.len() < LINES_MAX {
                self.add(task, attempt);
            }
        }
        self.early.clear();
    }

    fn add(&mut self, task: &TaskId, attempt: Attempt) {
        let bar = self.all.add(ProgressBar::new_spinner());
        bar.set_style(style("  {spinner} {elapsed:>4} {msg}"));
        bar.enable_steady_tick(TICK);
        let row = Row { bar, attempt, said: self.early.remove(task).unwrap_or_default() };
        row.draw(task);
        self.running.insert(task.clone(), row);
    }

    fn report(&mut self, task: &TaskId, report: &TaskReport) {
        match self.running.get_mut(task) {
            Some(row) => {
                row.said.note(report);
                row.draw(task);
            }
            None => self.early.entry(task.clone()).or_default().note(report),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_attempt_shows_what_it_said_last() {
        let mut row = Row { bar: ProgressBar::hidden(), attempt: Attempt(2), said: Said::default() };
        let task: TaskId = "train[0]".parse().unwrap();
        assert_eq!(row.text(&task), "train[0]#2");
        row.said.note(&TaskReport::Metric { name: "score".into(), value: 0.95, step: None });
        for done in [1.0, 3.0] {
            row.said.note(&TaskReport::Progress { done, total: Some(4.0), text: "fold\u{1b}[2J\n".into() });
        }
        assert_eq!(row.text(&task), "train[0]#2 75% fold�[2J , score 0.9500");
    }

    #[test]
    fn a_builder_that_counts_is_said_once_per_tenth() {
        let mut changes = Changes::default();
        let building = |done| Building {
            phase: "download".into(),
            text: "numpy".into(),
            done: Some(done),
            total: Some(100),
        };
        let said = (0..=100).filter(|done| changes.is_new(&building(*done))).count();
        assert_eq!(said, 11);
        assert_eq!(building(3).line(), "environment: numpy (3 of 100)");
    }
}
