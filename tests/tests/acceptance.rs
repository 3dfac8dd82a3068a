//! The pages in `docs/` that tell which test holds to which statement: complete, and of tests that exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::Path;

/// A page, and how many entries each group of it has.
struct Page {
    file: &'static str,
    groups: &'static [(&'static str, u32)],
    /// How the number of an entry is written.
    entry: fn(&str, u32) -> String,
}

const PAGES: [Page; 3] = [
    Page {
        file: "security-acceptance.md",
        groups: &[
            ("FS", 30),
            ("PR", 15),
            ("EX", 20),
            ("FD", 10),
            ("SC", 12),
            ("ID", 16),
            ("CG", 17),
            ("CO", 9),
            ("HK", 6),
            ("ST", 10),
        ],
        entry: |group, number| format!("{group}-{number:02}"),
    },
    Page {
        file: "image-acceptance.md",
        groups: &[("A", 90)],
        entry: |group, number| format!("{group}{number}"),
    },
    Page {
        file: "cni-acceptance.md",
        groups: &[
            ("C", 11),
            ("S", 11),
            ("V", 16),
            ("R", 7),
            ("X", 5),
            ("T", 4),
            ("B", 21),
            ("A", 7),
            ("P", 7),
        ],
        entry: |group, number| format!("{group}{number}"),
    },
];

/// Where tests are.
const FOLDERS: [&str; 6] = ["benches", "cni", "executor", "image", "isolators", "tests"];

/// What stands in the place of a test, before the reason.
const NO_TEST: [&str; 2] = ["Cannot apply: ", "Open: "];

fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let names = text.lines().filter_map(|line| {
                let line = line.trim_start();
                line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
            });
            found.extend(names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
}

/// The entries of a page; panics where one names a test that is not there.
fn entries(page: &str, tests: &BTreeSet<String>) -> BTreeSet<String> {
    let mut entries = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let Some((entry, what)) = line.trim_matches(['|', ' ']).split_once(" | ") else { continue };
        if entry == "Entry" {
            continue;
        }
        assert!(entries.insert(entry.to_owned()), "{entry} is listed twice");
        if NO_TEST.iter().any(|words| what.starts_with(words)) {
            continue;
        }
        for name in what.split(", ").map(|name| name.trim_matches('`')) {
            assert!(tests.contains(name), "{entry}: there is no test {name}");
        }
    }
    entries
}

#[test]
fn docs_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if !root.join("docs").exists() {
        println!("skipped: the sources are not here");
        return;
    }
    let mut tests = BTreeSet::new();
    FOLDERS.iter().for_each(|folder| functions(&root.join(folder), &mut tests));
    for page in PAGES {
        let text = std::fs::read_to_string(root.join("docs").join(page.file)).unwrap();
        let numbers = |(group, count): &(&str, u32)| {
            let entry = page.entry;
            (1..=*count).map(|number| entry(group, number)).collect::<Vec<_>>()
        };
        let expected: BTreeSet<String> = page.groups.iter().flat_map(numbers).collect();
        assert_eq!(entries(&text, &tests), expected, "{}", page.file);
    }
}
