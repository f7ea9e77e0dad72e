//! Tables for people: columns as wide as their longest cell.

/// Prints rows below a heading; a cell shows control characters escaped.
pub fn print<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    print!("{}", render(heading, rows));
}

/// A text as a terminal may have it: control characters, and what turns a line around, escaped; quotes harm nobody.
pub fn clean(text: &str) -> String {
    let shown = |c: char| match c {
        '\'' | '"' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(shown).collect()
}

fn render<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let clean = |cell: String| if cell.is_empty() { "-".to_owned() } else { clean(&cell) };
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(clean)).collect();
    let mut widths = heading.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&heading.map(str::to_owned)).chain(&rows) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [["1".into(), "a\u{1b}b".into()], ["12345".into(), String::new()]];
        assert_eq!(super::clean("credvend's \"own\"\n\u{202e}"), "credvend's \"own\"\\n\\u{202e}");
        assert_eq!(super::render(["JOB", "X"], rows), "JOB    X\n1      a\\u{1b}b\n12345  -\n");
    }
}
