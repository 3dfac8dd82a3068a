//! Help, printed from the tables.

use std::fmt::Write;

use crate::table::{COMMANDS, Command, Flag, GLOBALS, Takes};

/// The name that this program is called by: it may be installed as `runc`.
fn called() -> String {
    let name = std::env::args_os().next().map(std::path::PathBuf::from);
    let name =
        name.as_deref().and_then(std::path::Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "cofferdam-oci".into())
}

/// Help of one command.
pub(crate) fn command(command: &Command) -> String {
    let (program, name) = (called(), command.name);
    let mut text = format!(
        "NAME:\n   {program} {name} - {}\n\nUSAGE:\n   {program} {name} [options] {}\n",
        command.about, command.words.usage
    );
    text.push_str("\nOPTIONS:\n");
    command.flags.iter().for_each(|group| flags(&mut text, group));
    text
}

/// Help of the whole program.
pub(crate) fn program() -> String {
    let program = called();
    let mut text = format!(
        "NAME:\n   {program} - Open Container Initiative runtime, in the place of runc\n\n\
         USAGE:\n   {program} [global options] COMMAND [options] [arguments]\n\nCOMMANDS:\n",
    );
    for command in COMMANDS {
        let _ = writeln!(text, "   {:<10} {}", command.name, command.about);
    }
    text.push_str("\nGLOBAL OPTIONS:\n");
    flags(&mut text, GLOBALS);
    text
}

fn flags(text: &mut String, flags: &[Flag]) {
    for flag in flags.iter().filter(|flag| !flag.about.is_empty()) {
        let value = match flag.takes {
            Takes::Value(value) => format!(" {value}"),
            Takes::Nothing => String::new(),
        };
        let letter = flag.letter.map(|letter| format!(", -{letter}")).unwrap_or_default();
        let _ = writeln!(text, "   {:<36} {}", format!("--{}{letter}{value}", flag.name), flag.about);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_of_a_command_names_its_options_and_hides_the_hidden() {
        let text = command(Command::find("kill").unwrap());
        assert!(text.contains(" kill [options] ID [SIGNAL]") && text.contains("--help, -h"), "{text}");
        assert!(!text.contains("--all"), "{text}");
        assert!(program().contains("features") && program().contains("--cgroup-manager MANAGER"));
    }
}
