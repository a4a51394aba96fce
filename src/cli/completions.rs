//! `temper completions`.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::args::Cli;
use super::output;
use crate::error::{Error, Result};

/// `temper completions`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper completions bash > ~/.local/share/bash-completion/completions/temper
  temper completions zsh > ~/.zfunc/_temper
  temper completions fish > ~/.config/fish/completions/temper.fish
  temper completions --man ~/.local/share/man/man1")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum, required_unless_present = "man")]
    pub shell: Option<Shell>,
    /// Write a man page of each command into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "shell")]
    pub man: Option<PathBuf>,
}

/// Prints the script, or writes the pages.
///
/// # Errors
/// `Error::Io`.
pub(super) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut command = Cli::command();
    if let Some(folder) = &args.man {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        return clap_mangen::generate_to(command, folder)
            .map_err(Error::io("write man pages to", folder));
    }
    let mut script = Vec::new();
    if let Some(shell) = args.shell {
        clap_complete::generate(shell, &mut command, "temper", &mut script);
    }
    output::print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_and_every_command_has_its_text() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Elvish,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "temper", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["recipe", "chat", "dry-run", "max-new-tokens"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("man1");
        run(&CompletionsArgs {
            shell: None,
            man: Some(folder.clone()),
        })
        .unwrap();
        for command in Cli::command().get_subcommands() {
            let page = folder.join(format!("temper-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
        }
    }
}
