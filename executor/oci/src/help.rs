//! Help, printed from the tables.

use std::fmt::Write;

use crate::table::{COMMANDS, Command, Flag, GLOBALS, Takes};

/// Help of one command.
pub(crate) fn command(command: &Command) -> String {
    let mut text = format!(
        "NAME:\n   cofferdam-oci {} - {}\n\nUSAGE:\n   cofferdam-oci {} [options] {}\n",
        command.name, command.about, command.name, command.words.usage
    );
    text.push_str("\nOPTIONS:\n");
    command.flags.iter().for_each(|group| flags(&mut text, group));
    text
}

/// Help of the whole program.
pub(crate) fn program() -> String {
    let mut text = String::from(
        "NAME:\n   cofferdam-oci - OCI runtime, a drop-in for runc\n\n\
         USAGE:\n   cofferdam-oci [global options] COMMAND [options] [arguments]\n\nCOMMANDS:\n",
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
        assert!(
            text.contains("cofferdam-oci kill [options] ID [SIGNAL]") && text.contains("--help, -h"),
            "{text}"
        );
        assert!(!text.contains("--all"), "{text}");
        assert!(program().contains("features") && program().contains("--cgroup-manager MANAGER"));
    }
}
