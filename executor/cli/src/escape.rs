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

/// Output of a task that was kept, for a terminal: colours are let through, everything else that steers one is not.
pub(crate) fn escape_output(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for (number, part) in text.split('\x1b').enumerate() {
        let end = colour_end(part);
        match (number, end) {
            (0, _) => out.push_str(&escape(part)),
            (_, Some(end)) => {
                out.push('\x1b');
                out.push_str(&part[..end]);
                out.push_str(&escape(&part[end..]));
            }
            (_, None) => out.push_str(&escape(&format!("\x1b{part}"))),
        }
    }
    out
}

/// Where `[31;1m` ends, if the text begins so.
fn colour_end(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('[')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    rest[digits..].starts_with('m').then_some(digits + 2)
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_of_kept_output_are_let_through_and_nothing_else() {
        assert_eq!(escape_output(b"a\x1b[31;1mred\x1b[0m"), "a\x1b[31;1mred\x1b[0m");
        assert_eq!(escape_output(b"\x1b[2Jx\x1b]0;t\x07"), "\\u{1b}[2Jx\\u{1b}]0;t\\u{7}");
        assert_eq!(escape_output(b"end\x1b"), "end\\u{1b}");
    }

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
