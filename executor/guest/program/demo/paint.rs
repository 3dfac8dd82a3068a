//! The layout: a line a wall, evidence beneath it, a sentence at the end; colours on a terminal only.

use std::io::{self, IsTerminal, Write};

use super::{Verdict, Wall};
use crate::guest::terminal;

const NAME_WIDTH: usize = 19;
const DEFAULT_WIDTH: usize = 100;

/// Prints the walls and the summary.
pub(crate) fn print(walls: &[Wall], out: &mut impl Write) -> io::Result<()> {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let width = window_width();
    writeln!(out)?;
    writeln!(out, "  {}", styled("A look at the walls from inside this task", "1", colours))?;
    writeln!(out)?;
    for wall in walls {
        let (mark, colour) = mark(wall.verdict);
        writeln!(out, "  {} {:NAME_WIDTH$}{}", styled(mark, colour, colours), wall.name, wall.words)?;
        for line in wrap(&wall.seen, width.saturating_sub(NAME_WIDTH + 5)) {
            writeln!(out, "    {:NAME_WIDTH$}{}", "", styled(&line, "2", colours))?;
        }
    }
    writeln!(out)?;
    writeln!(out, "  {}", summary(walls, colours))?;
    writeln!(out)?;
    out.flush()
}

fn window_width() -> usize {
    use std::os::fd::AsFd;
    terminal::window_size(io::stdout().as_fd())
        .map(|size| usize::from(size.columns))
        .filter(|columns| *columns >= 40)
        .unwrap_or(DEFAULT_WIDTH)
}

fn mark(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Holds => ("✔", "32"),
        Verdict::Open => ("✘", "1;31"),
        Verdict::Absent => ("–", "33"),
    }
}

fn styled(text: &str, code: &str, colours: bool) -> String {
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn summary(walls: &[Wall], colours: bool) -> String {
    let count = |verdict| walls.iter().filter(|wall| wall.verdict == verdict).count();
    let (holding, open, absent) = (count(Verdict::Holds), count(Verdict::Open), count(Verdict::Absent));
    let besides = if absent == 0 { String::new() } else { format!(" ({absent} not asked for)") };
    match open {
        0 => styled(
            &format!("Every wall that was put up holds: {holding} of {holding}{besides}."),
            "1;32",
            colours,
        ),
        1 => styled(&format!("One wall is open; {holding} hold{besides}."), "1;31", colours),
        _ => styled(&format!("{open} walls are open; {holding} hold{besides}."), "1;31", colours),
    }
}

/// Breaks at spaces; a word that is longer than the line stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(verdict: Verdict) -> Wall {
        Wall { name: "files", verdict, words: "has its own".to_owned(), seen: "/ is overlay".to_owned() }
    }

    #[test]
    fn evidence_is_wrapped_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible", 7), ["incomprehensible"]);
        assert!(wrap("", 7).is_empty());
    }

    #[test]
    fn the_summary_counts_what_was_not_asked_for_apart() {
        let walls = [wall(Verdict::Holds), wall(Verdict::Absent)];
        assert_eq!(summary(&walls, false), "Every wall that was put up holds: 1 of 1 (1 not asked for).");
        assert_eq!(summary(&[wall(Verdict::Open)], false), "One wall is open; 0 hold.");
    }

    #[test]
    fn what_is_printed_without_a_terminal_has_no_escapes() {
        let mut printed = Vec::new();
        print(&[wall(Verdict::Holds)], &mut printed).expect("a vector takes everything");
        let printed = String::from_utf8(printed).expect("text");
        assert!(!printed.contains('\x1b') || io::stdout().is_terminal(), "{printed}");
        assert!(printed.contains("✔ files"), "{printed}");
    }
}
