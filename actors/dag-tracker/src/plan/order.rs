//! The order of tasks: an order in which they can run, the same every time, or the circle that prevents it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use eclosion_schemas::Error;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

/// Which tasks each task needs, by name.
pub(crate) type Needs<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Every task after those that it needs; where several could be next, the first by name.
///
/// # Errors
/// `flow.cycle`, naming a shortest circle in the direction in which values would flow.
pub(crate) fn order<'a>(needs: &Needs<'a>) -> Result<Vec<&'a str>, Error> {
    let mut graph = DiGraphMap::<&str, ()>::new();
    for (task, needed) in needs {
        graph.add_node(task);
        for need in needed {
            graph.add_edge(need, task, ());
        }
    }
    let mut unmet: BTreeMap<&str, usize> = needs.iter().map(|(task, needed)| (*task, needed.len())).collect();
    let mut ready: BTreeSet<&str> =
        unmet.iter().filter(|(_, unmet)| **unmet == 0).map(|(task, _)| *task).collect();
    let mut ordered = Vec::with_capacity(needs.len());
    while let Some(task) = ready.pop_first() {
        ordered.push(task);
        for dependant in graph.neighbors(task) {
            if let Some(left) = unmet.get_mut(dependant) {
                *left -= 1;
                if *left == 0 {
                    ready.insert(dependant);
                }
            }
        }
    }
    if ordered.len() == needs.len() { Ok(ordered) } else { Err(circle(&graph)) }
}

fn circle(graph: &DiGraphMap<&str, ()>) -> Error {
    let on_circles = tarjan_scc(graph).into_iter().filter(|component| {
        component.len() > 1 || component.iter().any(|task| graph.contains_edge(task, task))
    });
    // The component whose first task by name comes first: the same one every time.
    let first = on_circles.filter_map(|component| component.into_iter().min()).min().unwrap_or_default();
    let path = shortest_circle(graph, first).join(" → ");
    Error::invalid("flow.cycle", format!("the tasks wait for each other in a circle: {path}"))
        .help("remove one of these references, or one of the names in `after`")
}

/// From a task back to itself, over as few others as possible.
fn shortest_circle<'a>(graph: &DiGraphMap<&'a str, ()>, start: &'a str) -> Vec<&'a str> {
    let mut came_from = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(task) = queue.pop_front() {
        let next: BTreeSet<&str> = graph.neighbors(task).collect();
        if next.contains(start) {
            let mut path = vec![start, task];
            while let Some(before) = path.last().and_then(|task| came_from.get(task)) {
                path.push(*before);
            }
            path.reverse();
            return path;
        }
        for task_after in next {
            if task_after != start && !came_from.contains_key(task_after) {
                came_from.insert(task_after, task);
                queue.push_back(task_after);
            }
        }
    }
    vec![start]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs<'a>(pairs: &[(&'a str, &[&'a str])]) -> Needs<'a> {
        pairs.iter().map(|(task, needed)| (*task, needed.iter().copied().collect())).collect()
    }

    #[test]
    fn ties_are_broken_by_name() {
        let given = needs(&[("z", &[]), ("a", &["m"]), ("m", &[]), ("b", &["z"])]);
        assert_eq!(order(&given).expect("no circle"), ["m", "a", "z", "b"]);
    }

    #[test]
    fn a_circle_is_named_node_by_node() {
        for (given, path) in [
            (needs(&[("a", &["a"])]), "a → a"),
            (needs(&[("a", &["b"]), ("b", &["a"])]), "a → b → a"),
            (needs(&[("a", &["c"]), ("b", &["a"]), ("c", &["b"]), ("d", &["c"])]), "a → b → c → a"),
            (needs(&[("x", &[]), ("q", &["p", "x"]), ("p", &["q"]), ("r", &["q", "r"])]), "p → q → p"),
        ] {
            let error = order(&given).expect_err(path);
            assert_eq!(error.reason, "flow.cycle");
            assert_eq!(error.message, format!("the tasks wait for each other in a circle: {path}"));
        }
    }
}
