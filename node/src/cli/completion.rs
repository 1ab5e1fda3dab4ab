//! `warren completion`: a script that completes this command line in a shell.

use clap::{CommandFactory, ValueEnum};

use super::{Cli, Context, Exit, Outcome};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Put the script where the shell looks for it and open a new shell. It knows every command, option and fixed value of this very version.

Examples:
  warren completion bash > /etc/bash_completion.d/warren
  warren completion zsh > \"${fpath[1]}/_warren\"
  warren completion fish > ~/.config/fish/completions/warren.fish")]
pub(super) struct Arguments {
    /// Which shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// The shells whose completion is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    context.output.print_text(&script(arguments.shell))?;
    Ok(Exit::Yes)
}

fn script(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "warren", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn each_script_knows_every_verb_and_long_option() {
        let command = Cli::command();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(script.contains(verb.get_name()), "{shell:?}: {}", verb.get_name());
                for option in verb.get_arguments().filter_map(|argument| argument.get_long()) {
                    assert!(script.contains(option), "{shell:?}: {} --{option}", verb.get_name());
                }
            }
        }
    }

    #[test]
    fn bash_takes_the_script_and_completes_a_verb_with_it() {
        let ask = "COMP_WORDS=(warren stat); COMP_CWORD=1; _warren warren stat warren; echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash")
            .args(["--norc", "--noprofile", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let text = format!("{}\n{ask}\n", script(Shell::Bash));
        bash.stdin.take().expect("piped").write_all(text.as_bytes()).expect("taken");
        let answer = bash.wait_with_output().expect("ended");
        assert!(answer.status.success(), "{answer:?}");
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "status");
    }
}
