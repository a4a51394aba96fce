//! What a line of the user asks for.

use std::path::PathBuf;

use crate::suggest::did_you_mean;

/// The answer to `/help`.
pub(super) const HELP: &str = "\
/reset          forget the conversation; the system message stays
/system TEXT    set the system message; without text, remove it
/undo           take back the last message and its answer
/retry          answer the last message again
/compare        answer it without the adapter, to see what training changed
/save FILE      write the conversation as a row of training data
/quit           end, as Ctrl-D does
A message that begins with a slash: put a space before it.
";

/// Names of the commands.
const NAMES: [&str; 8] = [
    "/help", "/reset", "/system", "/undo", "/retry", "/compare", "/save", "/quit",
];

/// A line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// A message to the model.
    Say(String),
    /// An empty line.
    Nothing,
    /// Lists the commands.
    Help,
    /// Ends the program.
    Quit,
    /// Forgets the conversation.
    Reset,
    /// Sets the system message, or removes it if empty.
    System(String),
    /// Takes back the last message.
    Undo,
    /// Samples the last answer again.
    Retry,
    /// Answers the last message without the adapter.
    Compare,
    /// Writes the conversation to a file.
    Save(PathBuf),
}

impl Order {
    /// Understands a line.
    ///
    /// # Errors
    /// What is wrong with a command.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        if !line.starts_with('/') {
            let text = line.trim();
            return Ok(match text {
                "" => Self::Nothing,
                text => Self::Say(text.to_owned()),
            });
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let order = match name {
            "/help" | "/?" => Self::Help,
            "/quit" | "/exit" | "/q" => Self::Quit,
            "/reset" | "/clear" => Self::Reset,
            "/system" => return Ok(Self::System(rest.to_owned())),
            "/undo" => Self::Undo,
            "/retry" => Self::Retry,
            "/compare" => Self::Compare,
            "/save" if rest.is_empty() => return Err("/save: expected a file name".into()),
            "/save" => return Ok(Self::Save(rest.into())),
            name => {
                let help = did_you_mean(name, NAMES).unwrap_or_else(|| "/help lists them".into());
                return Err(format!("{name}: no such command; {help}"));
            }
        };
        match rest {
            "" => Ok(order),
            _ => Err(format!("{name} takes nothing more; found {rest:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let parse = |line| Order::parse(line).unwrap();
        assert_eq!(parse("  "), Order::Nothing);
        assert_eq!(parse(" hello \r"), Order::Say("hello".into()));
        assert_eq!(
            parse(" /etc is a folder"),
            Order::Say("/etc is a folder".into())
        );
        assert_eq!(parse("/system be brief"), Order::System("be brief".into()));
        assert_eq!(parse("/system"), Order::System(String::new()));
        assert_eq!(parse("/save a b.jsonl"), Order::Save("a b.jsonl".into()));
        assert_eq!(parse("/quit"), Order::Quit);
        for (line, part) in [
            ("/rest", "did you mean `/reset`?"),
            ("/etc", "/help"),
            ("/save", "expected a file name"),
            ("/undo 2", "found \"2\""),
        ] {
            let error = Order::parse(line).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(NAMES.iter().skip(1).all(|name| HELP.contains(name)));
    }
}
