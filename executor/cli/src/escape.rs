//! Text that others wrote (names, labels, messages, commands) printed so that it cannot steer a terminal.

use std::fmt::Write as _;

/// The text with control characters, and characters that turn the direction of writing, shown as escapes. Newlines and tabs
/// stay.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || c == '\t' || !(c.is_control() || is_invisible(c)) {
            out.push(c);
        } else {
            let _ = write!(out, "{}", c.escape_unicode());
        }
    }
    out
}

/// The same for one cell of a table: nothing may end the line.
pub(crate) fn escape_line(text: &str) -> String {
    escape(text).replace('\n', "\\n").replace('\t', "\\t")
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        for hostile in ["\x1b]52;c;x\x07", "\x1b[2J", "a\rb", "\u{9b}31m", "\u{202e}txt.exe", "\0"] {
            let shown = escape_line(hostile);
            assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)), "{shown:?}");
        }
        assert_eq!(escape("plain ä 漢\n"), "plain ä 漢\n");
        assert_eq!(escape_line("a\nb"), "a\\nb");
    }
}
