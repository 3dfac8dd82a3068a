//! All outcomes, for people, for TAP readers, for JUnit readers.

use std::fmt::Write as _;
use std::str::FromStr;

use cofferdam_cni::Version;

use crate::case::{Outcome, Severity, Verdict};
use crate::groups::{TITLES, group};
use crate::profile::Subject;
use crate::xml::escape;

/// As many calls of a failed case are read by people.
const MOST_CALLS: usize = 8;

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// Test Anything Protocol 13.
    Tap,
    /// JUnit's XML: one suite a group.
    Junit,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "tap" => Ok(Self::Tap),
            "junit" => Ok(Self::Junit),
            other => Err(format!("there is no format {other:?}: text, tap, junit")),
        }
    }
}

/// What came of all cases.
#[derive(Debug, Clone)]
pub struct Report {
    plugin: String,
    versions: Vec<String>,
    /// In the order in which they ran.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(subject: &Subject, versions: &[Version], outcomes: Vec<Outcome>) -> Self {
        let versions = versions.iter().map(ToString::to_string).collect();
        Self { plugin: subject.program.display().to_string(), versions, outcomes }
    }

    /// The failures of at least this severity.
    pub fn failures(&self, least: Severity) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| {
            outcome.case.severity >= least && matches!(outcome.verdict, Verdict::Failed(_))
        })
    }

    /// Whether nothing failed that MUST not.
    pub fn is_conformant(&self) -> bool {
        self.failures(Severity::Must).next().is_none()
    }

    /// The whole report.
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Tap => self.tap(),
            Format::Junit => self.junit(),
        }
    }

    /// The last line of the text.
    pub fn summary(&self) -> String {
        let count =
            |wanted: fn(&Verdict) -> bool| self.outcomes.iter().filter(|o| wanted(&o.verdict)).count();
        let failed = count(|verdict| matches!(verdict, Verdict::Failed(_)));
        format!(
            "{}: {} passed, {failed} failed ({} MUST), {} skipped",
            self.plugin,
            count(|verdict| matches!(verdict, Verdict::Passed(_))),
            self.failures(Severity::Must).count(),
            count(|verdict| matches!(verdict, Verdict::Skipped(_)))
        )
    }

    fn text(&self) -> String {
        let mut out = format!("{}: CNI {}\n", self.plugin, self.versions.join(", "));
        let mut current = 0;
        for outcome in &self.outcomes {
            let number = group(outcome.case.id);
            if number != current {
                current = number;
                let _ = writeln!(out, "{number}. {}", TITLES.get(number.wrapping_sub(1)).unwrap_or(&""));
            }
            let _ = writeln!(out, "{}", line(outcome));
        }
        for outcome in self.failures(Severity::Quality).filter(|outcome| !outcome.replay.is_empty()) {
            let _ = writeln!(
                out,
                "\n{} again, by hand (namespaces: ip netns add NAME, /run/netns/NAME):",
                outcome.case.id
            );
            let left_out = outcome.replay.len().saturating_sub(MOST_CALLS);
            if left_out > 0 {
                let _ = writeln!(out, "# {left_out} calls before are left out; TAP and JUnit have all");
            }
            for call in &outcome.replay[left_out..] {
                let _ = writeln!(out, "{call}");
            }
        }
        let _ = writeln!(out, "\n{}", self.summary());
        out
    }

    fn tap(&self) -> String {
        let mut out = format!("TAP version 13\n1..{}\n", self.outcomes.len());
        for (number, outcome) in (1..).zip(&self.outcomes) {
            let case = outcome.case;
            let (word, end, details) = match &outcome.verdict {
                Verdict::Passed(_) => ("ok", String::new(), None),
                Verdict::Skipped(why) => ("ok", format!(" # SKIP {}", why.replace('\n', " ")), None),
                Verdict::Failed(how) => ("not ok", String::new(), Some(how)),
            };
            let _ = writeln!(
                out,
                "{word} {number} - {} {} [{}, {}]{end}",
                case.id, case.title, case.severity, case.section
            );
            let Some(how) = details else { continue };
            // The number says how deep the text is: its first line may begin with blanks.
            out.push_str("  ---\n  message: |2\n");
            for line in how.lines() {
                let _ = writeln!(out, "    {line}");
            }
            out.push_str("  replay: |2\n");
            for line in outcome.replay.iter().flat_map(|call| call.lines()) {
                let _ = writeln!(out, "    {line}");
            }
            out.push_str("  ...\n");
        }
        out
    }

    fn junit(&self) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        for (number, title) in (1..).zip(TITLES) {
            let cases: Vec<&Outcome> =
                self.outcomes.iter().filter(|outcome| group(outcome.case.id) == number).collect();
            let failed = cases.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Failed(_))).count();
            let _ = writeln!(
                out,
                "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\">",
                escape(&format!("{} {number}. {title}", self.plugin)),
                cases.len()
            );
            for outcome in cases {
                let case = outcome.case;
                let _ = write!(
                    out,
                    "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">",
                    case.severity,
                    escape(&format!("{} {} [{}]", case.id, case.title, case.section)),
                    outcome.elapsed.as_secs_f64()
                );
                match &outcome.verdict {
                    Verdict::Passed(_) => {}
                    Verdict::Skipped(why) => {
                        let _ = write!(out, "<skipped message=\"{}\"/>", escape(why));
                    }
                    Verdict::Failed(how) => {
                        let replay = escape(&outcome.replay.join("\n"));
                        let _ = write!(out, "<failure message=\"{}\">{replay}</failure>", escape(how));
                    }
                }
                out.push_str("</testcase>\n");
            }
            out.push_str("</testsuite>\n");
        }
        out.push_str("</testsuites>\n");
        out
    }
}

/// One outcome for people.
pub(crate) fn line(outcome: &Outcome) -> String {
    let case = outcome.case;
    let (word, more) = match &outcome.verdict {
        Verdict::Passed(figure) if figure.is_empty() => ("ok", String::new()),
        Verdict::Passed(figure) => ("ok", format!(": {figure}")),
        Verdict::Skipped(why) => ("skip", format!(": {why}")),
        Verdict::Failed(how) => ("FAIL", format!("\n         {}", how.replace('\n', "\n         "))),
    };
    format!(
        "  {word:<4} {:<20} {:<7} {} [{}]{more}",
        case.id,
        case.severity.to_string(),
        case.title,
        case.section
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let verdicts = [
            Verdict::Passed(String::new()),
            Verdict::Skipped("not <here>".into()),
            Verdict::Failed("one & two\nlines".into()),
        ];
        let outcomes = crate::cases().into_iter().zip(verdicts).map(|(case, verdict)| Outcome {
            case,
            verdict,
            replay: vec!["env -i CNI_COMMAND='ADD' /plugin <<'END'\n{}\nEND".into()],
            elapsed: Duration::from_millis(5),
        });
        Report { plugin: "/plugin".into(), versions: vec!["1.0.0".into()], outcomes: outcomes.collect() }
    }

    #[test]
    fn the_three_formats_say_the_same() {
        let report = report();
        let text = report.print(Format::Text);
        assert!(text.ends_with("/plugin: 1 passed, 1 failed (0 MUST), 1 skipped\n"), "{text}");
        assert!(text.contains("FAIL 1.known") && text.contains("env -i CNI_COMMAND='ADD'"), "{text}");
        let tap = report.print(Format::Tap);
        assert!(tap.starts_with("TAP version 13\n1..3\nok 1 - 1.answer"), "{tap}");
        assert!(tap.contains("# SKIP not <here>\nnot ok 3 - 1.known"), "{tap}");
        let junit = report.print(Format::Junit);
        assert_eq!(junit.matches("<testcase ").count(), 3, "{junit}");
        assert!(junit.contains("not &lt;here&gt;") && junit.contains("one &amp; two&#10;lines"), "{junit}");
    }
}
