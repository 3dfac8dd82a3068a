//! Compiles `program/main.rs` into one small static executable, which the library embeds.
//!
//! One call of rustc and no cargo: the program uses nothing but std, so a nested cargo build (with its own lock, target
//! folder and network) would buy nothing. See docs/adr/0010-guest-program.md.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest's own sources, and the ones that it shares with `cofferdam-linux` because they hold unsafe code.
const SOURCES: [&str; 2] = ["program", "../../isolators/linux/src/guest"];

fn main() -> Result<(), Box<dyn Error>> {
    for source in SOURCES.into_iter().chain(["build.rs"]) {
        println!("cargo::rerun-if-changed={source}");
    }
    let rustc = env::var("RUSTC")?;
    let target = env::var("TARGET")?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("guest");
    compile(&rustc, &target, &out)
}

fn compile(rustc: &str, target: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "--crate-name=guest", "--crate-type=bin", "--target", target]);
    for option in ["target-feature=+crt-static", "opt-level=s", "panic=abort", "strip=symbols", "lto"] {
        command.args(["-C", option]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg("-C").arg(format!("linker={linker}"));
    }
    let status = command.arg("-o").arg(out).arg("program/main.rs").status()?;
    if status.success() { Ok(()) } else { Err(format!("rustc failed on the guest program: {status}").into()) }
}
