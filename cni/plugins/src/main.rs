//! The built-in plugins as one program, for any CNI runtime: `cofferdam-cni install /opt/cni/bin`.

use std::process::ExitCode;

use cofferdam_cni::Program;
use cofferdam_cni_plugins::{BUILTINS, finish_announcements};

fn main() -> ExitCode {
    let status = Program::new("the plugins of cofferdam", BUILTINS).run();
    finish_announcements();
    status
}
