//! What helps are made of: the name that somebody probably meant, and words of commands.

/// The nearest of `known` to `word`, if it is near enough to be a slip: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // It may come from outside, and comparing costs its length. No name of ours is nearly as long.
    const WORD_BYTES_MAX: usize = 256;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter(|name| *name != word)
        .map(|name| (distance(word, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// A sentence that follows a refusal of `word`: the likely name, or all that there are.
pub fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(word, known.clone()) {
        return format!("did you mean `{name}`?");
    }
    let names: Vec<_> = known.into_iter().take(NAMES_MAX).map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "there is none".into(),
        _ => format!("there is {}", names.join(", ")),
    }
}

/// One word to a shell, whatever is in it.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=,+@%".contains(&b);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// More names than this are a wall and not a hint.
const NAMES_MAX: usize = 12;
/// Longer words are not compared: the cost is the product of both lengths.
const WORD_CHARS_MAX: usize = 64;

/// Letters to insert, delete, replace or swap with their neighbor (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(WORD_CHARS_MAX).collect();
    let right: Vec<char> = right.chars().take(WORD_CHARS_MAX).collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_to_a_shell() {
        for (text, word) in [("flow.toml", "flow.toml"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_finds_none() {
        let known = ["load", "train", "report"];
        assert_eq!(nearest("laod", known), Some("load"));
        assert_eq!(nearest("trian", known), Some("train"));
        assert_eq!(nearest("reports", known), Some("report"));
        assert_eq!(nearest("x", known), None);
        assert_eq!(hint("zebra", known), "there is `load`, `train`, `report`");
    }
}
