//! Shell completions and manual pages, made from the definition of the command line.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap_complete::Shell;

/// Prints a shell's completion script.
pub fn completion(command: &clap::Command, shell: Shell) -> anyhow::Result<ExitCode> {
    // Rendered first: a reader that has gone (`| head`) is then an error like any other and not a panic.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(command), "borealis", &mut script);
    std::io::stdout().write_all(&script).context("cannot print the completion script")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page for the program and each of its commands into a folder, which is made if it is missing.
pub fn pages(command: &clap::Command, folder: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let command = visible(command);
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The command without what is hidden from help: the shells' generators do not all leave that out.
fn visible(command: &clap::Command) -> clap::Command {
    let shown = clap::Command::new("borealis")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned());
    shown.subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn script(shell: Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut visible(&crate::CommandLine::command()), "borealis", &mut script);
        String::from_utf8(script).expect("text")
    }

    #[test]
    fn every_shell_completes_commands_and_options_and_nothing_hidden() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for word in ["verify", "redo-check", "completion", "detach", "cache-limit"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
            assert!(!script.contains("internal"), "{shell} offers the hidden commands");
        }
    }

    #[test]
    fn every_visible_command_has_a_manual_page() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let inner = folder.path().join("man");
        pages(&crate::CommandLine::command(), &inner).expect("pages");
        let mut names: Vec<String> = std::fs::read_dir(&inner)
            .expect("read")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        for name in ["borealis.1", "borealis-up.1", "borealis-node-kill.1", "borealis-completion.1"] {
            assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
        let page = std::fs::read_to_string(inner.join("borealis-up.1")).expect("page");
        assert!(page.contains("detach") && page.contains("SIZE"), "{page}");
    }
}
