//! What may be shown on a terminal as it is.

use std::fmt;

/// Whether a character is seen where it stands, and changes nothing else: no control, and none of those that reverse, hide or
/// join what is around them (U+202E, U+200B, …), nor any that Unicode has not assigned.
pub fn is_printable(c: char) -> bool {
    // The quotes and the backslash are escaped for another reason.
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// The same text with everything else escaped.
pub fn escaped(text: impl IntoIterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in text {
        if is_printable(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

/// A name as the value of a field in a line of a log: as it is, or in quotes where it could be taken for more than one value.
#[derive(Debug, Clone, Copy)]
pub struct FieldValue<'a>(pub &'a str);

impl fmt::Display for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = !self.0.is_empty() && !self.0.contains([' ', '"', '=']) && self.0.chars().all(is_printable);
        if plain { f.write_str(self.0) } else { write!(f, "{:?}", self.0) }
    }
}

/// Somebody's sentence as one line of at most so many bytes: each control character becomes a space, so that the words
/// around it stay apart.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        if line.len() + c.len_utf8() > max_bytes {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_log_line_has_one_value() {
        for (name, shown) in [
            ("gpu+a100", "gpu+a100"),
            (r"DOM\jo", r"DOM\jo"),
            ("Jo Doe", r#""Jo Doe""#),
            ("a user=root", r#""a user=root""#),
            ("a=b", r#""a=b""#),
            (r#"a" b="c"#, r#""a\" b=\"c""#),
            ("", r#""""#),
        ] {
            assert_eq!(FieldValue(name).to_string(), shown);
        }
    }

    #[test]
    fn what_moves_or_hides_is_escaped() {
        assert_eq!(escaped("\"it's\" a\\b é 漢 😀".chars()), "\"it's\" a\\b é 漢 😀");
        assert_eq!(escaped("a\u{202e}b\u{2066}c\u{200b}d\u{feff}".chars()), "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{feff}");
        assert_eq!(escaped("\u{1b}[2J\n\u{9b}".chars()), "\\u{1b}[2J\\n\\u{9b}");
    }

    #[test]
    fn a_line_keeps_its_words_apart_and_is_bounded() {
        assert_eq!(one_line("revoked\nby\tcarol\u{1b}[2J\u{85}", 100), "revoked by carol [2J ");
        assert_eq!(one_line("éééé", 5), "éé");
        assert_eq!(one_line("", 5), "");
    }
}
