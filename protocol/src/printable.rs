//! What may be shown on a terminal as it is.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_or_hides_is_escaped() {
        assert_eq!(escaped("\"it's\" a\\b é 漢 😀".chars()), "\"it's\" a\\b é 漢 😀");
        assert_eq!(escaped("a\u{202e}b\u{2066}c\u{200b}d\u{feff}".chars()), "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{feff}");
        assert_eq!(escaped("\u{1b}[2J\n\u{9b}".chars()), "\\u{1b}[2J\\n\\u{9b}");
    }
}
