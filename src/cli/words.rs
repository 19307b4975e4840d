//! Words: the one that was meant, several in a sentence, many in lines.

use autocvd::program::{truncate, width};

/// The name that differs from `word` in at most a third of its letters, and the least.
pub(super) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = names.into_iter().map(|name| (distance(word, name), name));
    let limit = |name: &str| (name.len() / 3).clamp(1, 3);
    let near = distances.filter(|(distance, name)| *distance <= limit(name));
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be added, removed or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    // Longer words are no slips of the finger.
    if one.len().abs_diff(other.len()) > 3 {
        return usize::MAX;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for column in 0..other.len() {
            let changed = diagonal + usize::from(letter != other[column]);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// `a, b or c`.
pub(super) fn one_of(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

/// The text in lines of at most `columns`, broken at spaces; a longer word is cut.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(word) <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(truncate(word, columns)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_found_and_nothing_else() {
        for (word, near) in [
            ("TIMOUT", Some("TIMEOUT")),
            ("TIMEOUTS", Some("TIMEOUT")),
            ("NUM_GPU", Some("NUM_GPUS")),
            ("PRIORITY", None),
            ("MEM", None),
        ] {
            assert_eq!(
                nearest(word, ["NUM_GPUS", "TIMEOUT", "MIN_FREE_MEMORY"]),
                near,
                "{word}"
            );
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "ab"), 2);
    }

    #[test]
    fn alternatives_are_joined_as_in_a_sentence() {
        let names = |names: &[&str]| {
            one_of(
                &names
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(names(&["a", "b", "c"]), "a, b or c");
        assert_eq!(names(&["a"]), "a");
    }

    #[test]
    fn long_reasons_break_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible", 5), ["inco…"]);
        assert!(wrap("", 5).is_empty());
    }
}
