//! An error as a person reads it: the sentence, what led to it, the user's own frames, and what to do next.

use std::io::{IsTerminal, Write};

use eclosion_schemas::error::RemoteException;
use eclosion_schemas::{Code, Error, Retry};

use crate::arguments::Flags;
use crate::exit;
use crate::render::duration;
use crate::terminal::{clean, colors, document};

/// Of a chain of exceptions.
const CAUSES_MAX: usize = 5;

/// Says it on stderr, and with `--json` as a document on stdout.
pub(crate) fn report(error: &Error, flags: &Flags) {
    if error.reason == exit::OUTPUT_CLOSED {
        return;
    }
    let mut error = with_a_way_on(error);
    // A flag that was refused is not to be repeated.
    if !error.reason.starts_with("config.") {
        error.help = error.help.map(|help| flags.repeated_in(&help));
    }
    let error = &error;
    if flags.json {
        // Who asked for JSON and does not read it is told on stderr all the same.
        let _ = document("error", error);
    }
    let mut stderr = std::io::stderr();
    let mark = if colors(&stderr) && stderr.is_terminal() { "\u{1b}[1;31merror\u{1b}[0m" } else { "error" };
    let _ = writeln!(stderr, "{mark}: {}", clean(&text(error)));
}

/// Words that are no command, as a document; clap itself says them to people.
pub(crate) fn usage(why: &clap::Error) {
    let text = why.to_string();
    // The first paragraph says what is wrong, the others how it is written.
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").trim();
    let error = Error::invalid("usage", message).help("eclosion --help");
    // Who asked for JSON and does not read it is told on stderr all the same.
    let _ = document("error", &error);
}

/// Nobody is left without a command to run next.
fn with_a_way_on(error: &Error) -> Error {
    if error.help.is_some() {
        return error.clone();
    }
    error.clone().next(match error.code {
        Code::Invalid | Code::Unimplemented => "eclosion --help",
        Code::NotFound | Code::AlreadyExists | Code::Conflict | Code::Precondition | Code::Cancelled => {
            "eclosion runs ls"
        }
        Code::Deadline | Code::Exhausted | Code::SlowConsumer | Code::Unknown => "eclosion status",
        Code::Unauthenticated
        | Code::Denied
        | Code::Unavailable
        | Code::NoResponders
        | Code::Internal
        | Code::DataLoss => "eclosion doctor",
    })
}

/// Everything but the word `error`.
pub(crate) fn text(error: &Error) -> String {
    let mut lines = vec![format!("{} ({})", error.message, error.reason)];
    lines.extend(error.causes.iter().flat_map(|cause| cause.lines()).map(|line| format!("  {line}")));
    if let Some(remote) = &error.remote {
        lines.extend(exception(remote).into_iter().map(|line| format!("  {line}")));
    }
    if let Retry::After { after_ms } = error.retry {
        lines.push(format!("try again in {}", duration(after_ms)));
    }
    if let Some(help) = &error.help {
        lines.push(format!("help: {help}"));
    }
    lines.join("\n")
}

/// The user's own frames, outermost first, then what was raised; of a chain, what came first is on top, as in Python.
fn exception(remote: &RemoteException) -> Vec<String> {
    let chain: Vec<_> =
        std::iter::successors(Some(remote), |raised| raised.cause.as_deref()).take(CAUSES_MAX).collect();
    let mut lines = Vec::new();
    for (index, raised) in chain.iter().rev().enumerate() {
        if index > 0 {
            lines.push("which led to:".into());
        }
        lines.extend(frames(raised));
        let mut text = raised.text.lines();
        lines.push(format!("{}: {}", raised.kind, text.next().unwrap_or_default()));
        lines.extend(
            text.chain(raised.notes.iter().flat_map(|note| note.lines())).map(|line| format!("  {line}")),
        );
    }
    lines
}

fn frames(raised: &RemoteException) -> Vec<String> {
    let mut lines = Vec::new();
    let own = raised.frames.iter().filter(|frame| frame.user);
    for frame in own {
        lines.push(format!("{}:{}, in {}", frame.file, frame.line, frame.function));
        if !frame.source.trim().is_empty() {
            lines.push(format!("    {}", frame.source.trim()));
        }
    }
    let others = raised.frames.iter().filter(|frame| !frame.user).count();
    if others > 0 && !lines.is_empty() {
        let plural = if others == 1 { "frame" } else { "frames" };
        lines.push(format!("({others} {plural} of libraries not shown)"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use eclosion_schemas::error::RemoteFrame;

    use super::*;

    fn frame(file: &str, line: u32, user: bool) -> RemoteFrame {
        RemoteFrame {
            file: file.into(),
            line,
            function: "load".into(),
            source: "    read(path)".into(),
            user,
        }
    }

    #[test]
    fn an_error_without_help_gets_a_command_and_one_with_help_keeps_it() {
        let error = Error::new(Code::Unavailable, "x", "no");
        assert_eq!(with_a_way_on(&error).help.as_deref(), Some("eclosion doctor"));
        let helped = error.help("wait");
        assert_eq!(with_a_way_on(&helped), helped);
    }

    #[test]
    fn shows_the_users_frames_the_exception_and_the_way_on() {
        let mut error =
            Error::new(Code::Internal, "task.raised", "load raised ValueError").help("eclosion why 7k2m4q9d");
        error.remote = Some(Box::new(RemoteException {
            lang: "python".into(),
            kind: "builtins.ValueError".into(),
            text: "no such column: y\nthere are a, b".into(),
            frames: vec![frame("/runtime/worker.py", 10, false), frame("/home/ada/steps.py", 3, true)],
            notes: vec!["in row 7".into()],
            cause: Some(Box::new(RemoteException {
                lang: "python".into(),
                kind: "builtins.KeyError".into(),
                text: "'y'".into(),
                frames: Vec::new(),
                notes: Vec::new(),
                cause: None,
                truncated: false,
            })),
            truncated: false,
        }));
        let expected = "\
load raised ValueError (task.raised)
  builtins.KeyError: 'y'
  which led to:
  /home/ada/steps.py:3, in load
      read(path)
  (1 frame of libraries not shown)
  builtins.ValueError: no such column: y
    there are a, b
    in row 7
help: eclosion why 7k2m4q9d";
        assert_eq!(text(&error), expected);
    }
}
