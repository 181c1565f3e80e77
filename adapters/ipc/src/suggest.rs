//! The name that was probably meant.

/// The nearest of the known names, if it is near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Names are short; what is longer than any of ours is not compared.
    const NAME_BYTES_MAX: usize = 64;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let near = (name.chars().count() / 3).max(2);
    let ranked = known.map(|candidate| (distance(name, candidate), candidate));
    ranked.filter(|(distance, _)| *distance <= near).min().map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (n, l) in left.chars().enumerate() {
        let mut diagonal = n;
        row[0] = n + 1;
        for (m, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[m + 1];
            row[m + 1] = replaced.min(row[m] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        let known = ["run.start", "run.get", "kernel.ping"];
        assert_eq!(nearest("run.strat", known.into_iter()), Some("run.start"));
        assert_eq!(nearest("kernel.png", known.into_iter()), Some("kernel.ping"));
        assert_eq!(nearest("artifact.stage", known.into_iter()), None);
        assert_eq!(nearest(&"r".repeat(10_000), known.into_iter()), None);
    }
}
