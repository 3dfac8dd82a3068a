//! How a test says that it cannot run here.
//!
//! Rust's test harness knows no "skipped". A test that lacks something prints a line that begins with `skipped: `,
//! and returns; `cargo xtask ci` counts such tests apart from those that passed.

/// Whether this process is root; if not, says so.
///
/// ```no_run
/// if !cofferdam_tests::needs::root() {
///     return;
/// }
/// ```
pub fn root() -> bool {
    met(rustix::process::geteuid().is_root(), "needs root")
}

/// Whether every one of these programs is on the search path; if not, names the first that is not.
pub fn programs(names: &[&str]) -> bool {
    match names.iter().find(|name| find_program(name).is_none()) {
        Some(missing) => met(false, &format!("needs the program {missing}")),
        None => true,
    }
}

/// Whether a condition holds; if not, prints what is needed.
pub fn met(condition: bool, need: &str) -> bool {
    if !condition {
        println!("skipped: {need}");
    }
    condition
}

/// Where a program is on the search path.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Set by `cargo xtask ci --full`.
pub const FULL_VARIABLE: &str = "COFFERDAM_FULL";

/// Whether the slow tests are wanted too.
pub fn is_full() -> bool {
    std::env::var_os(FULL_VARIABLE).is_some()
}

/// The same; if not, says what is left out and how it is run.
pub fn full(what: &str) -> bool {
    met(is_full(), &format!("{what}: slow, run by `cargo xtask ci --full`"))
}
