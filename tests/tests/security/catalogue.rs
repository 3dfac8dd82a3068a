//! The page that tells which test belongs to which attack.

use std::collections::BTreeSet;
use std::path::Path;

/// How many entries each group of the catalogue has.
const GROUPS: [(&str, u32); 10] = [
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
];

/// Where tests are.
const FOLDERS: [&str; 4] = ["tests/tests", "executor/runtime", "executor/oci", "isolators"];

fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            found.extend(names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
}

#[test]
fn docs_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let Ok(page) = std::fs::read_to_string(root.join("docs/security-acceptance.md")) else {
        println!("skipped: the sources are not here");
        return;
    };
    let mut tests = BTreeSet::new();
    FOLDERS.iter().for_each(|folder| functions(&root.join(folder), &mut tests));
    let mut entries = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && line.contains('-')) {
        let Some((entry, what)) = line.trim_matches(['|', ' ']).split_once(" | ") else { continue };
        if entry == "Entry" {
            continue;
        }
        assert!(entries.insert(entry.to_owned()), "{entry} is listed twice");
        if what.starts_with("Cannot apply: ") {
            continue;
        }
        for name in what.split(", ").map(|name| name.trim_matches('`')) {
            assert!(tests.contains(name), "{entry}: there is no test {name}");
        }
    }
    let expected: BTreeSet<String> = GROUPS
        .iter()
        .flat_map(|(group, count)| (1..=*count).map(move |number| format!("{group}-{number:02}")))
        .collect();
    assert_eq!(entries, expected);
}
