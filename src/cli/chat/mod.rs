//! `temper chat`.

mod conversation;
mod lines;
mod order;
mod speaker;
mod stop;

use std::path::PathBuf;

use clap::Args;

use self::conversation::{Conversation, Message, load, save};
use self::lines::Lines;
use self::order::Order;
use self::speaker::{Answer, Limits, Speaker};
use self::stop::Stop;
use super::args::{ComputeArgs, ModelArgs, SamplingArgs};
use super::model::UnloadedModel;
use super::output;
use crate::backend::{Task, dispatch};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::manifest;
use crate::ops::ModelBackend;
use crate::terminal;

/// Most tokens of an answer, unless the user says otherwise.
const MAX_NEW_TOKENS: usize = 512;
/// Default temperature.
const TEMPERATURE: f64 = 0.7;

/// `temper chat`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Commands in the conversation: /help lists them (/reset, /system, /undo, /retry, /compare, /save, /quit).
Ctrl-C ends an answer, a second one the program. Lines can also be piped in, one message a line.

Examples:
  temper chat --model smollm2-135m
  temper chat --run runs/mine --stage sft                              the base's weights with what the stage has trained
  temper chat --run runs/mine --stage ppo --against exported/sft       two models answer every message
  temper chat --run runs/mine --continue                               go on where the last conversation ended"
)]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A second model that answers every message too
    #[arg(long, value_name = "DIR|NAME")]
    pub against: Option<String>,
    /// An adapter to put on the second model
    #[arg(long, value_name = "DIR", requires = "against")]
    pub against_adapter: Option<PathBuf>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Go on with the last conversation, which is kept in TEMPERING_HOME
    #[arg(long = "continue", conflicts_with = "history")]
    pub go_on: bool,
    /// Keep the conversation in this file and, if it is there, go on with it
    #[arg(long, value_name = "FILE.jsonl")]
    pub history: Option<PathBuf>,
    /// How answers are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Talks until the input ends.
///
/// # Errors
/// Those of loading and of the backend; `Error::Usage` for a model without a chat template.
pub(super) fn run(args: &ChatArgs, compute: &ComputeArgs) -> Result<()> {
    let mut models = vec![UnloadedModel::find(&args.model)?];
    if let Some(against) = &args.against {
        let second = ModelArgs {
            adapter: args.against_adapter.clone(),
            base_precision: args.model.base_precision,
            matmul_precision: args.model.matmul_precision,
            ..ModelArgs::of(against)
        };
        models.push(UnloadedModel::find(&second)?);
    }
    let tokenizers = models
        .iter()
        .map(tokenizer_of)
        .collect::<Result<Vec<_>>>()?;
    let file = match &args.history {
        Some(file) => {
            output::check(file)?;
            file.clone()
        }
        None => manifest::home().join("chat.jsonl"),
    };
    let go_on = args.go_on || args.history.is_some();
    let mut conversations = match go_on && file.is_file() {
        true => load(&file, models.len())?,
        false => vec![Conversation::default(); models.len()],
    };
    if args.go_on && conversations[0].is_empty() {
        eprintln!("there is no earlier conversation in {}", file.display());
    }
    for conversation in &mut conversations {
        if let Some(system) = &args.system {
            conversation.set_system(system);
        }
    }
    let task = ChatTask {
        args,
        models: &models,
        tokenizers: &tokenizers,
        conversations,
        file,
    };
    dispatch(compute.backend, compute.device, task)
}

/// The tokenizer of a model that can be talked with.
fn tokenizer_of(model: &UnloadedModel) -> Result<Tokenizer> {
    let tokenizer = model.tokenizer()?;
    if !tokenizer.has_chat() {
        return Err(Error::Usage(format!(
            "model {}: has no chat template, so that it cannot tell who speaks; continue text with `temper generate --model {} --prompt ..`, \
             or put the template of the data it was trained on into its folder as chat_template.jinja",
            model.source.name, model.source.name
        )));
    }
    Ok(tokenizer)
}

/// A conversation on a backend.
struct ChatTask<'a> {
    args: &'a ChatArgs,
    models: &'a [UnloadedModel],
    tokenizers: &'a [Tokenizer],
    conversations: Vec<Conversation>,
    file: PathBuf,
}

impl Task for ChatTask<'_> {
    type Output = ();

    fn run<B: ModelBackend>(self, device: B::Device, backend: &'static str) -> Result<()> {
        let limits = |model: &UnloadedModel| Limits::of(model, &self.args.sampling);
        let parts = self
            .models
            .iter()
            .zip(self.tokenizers)
            .zip(self.conversations);
        let speakers = parts
            .map(|((model, tokenizer), conversation)| {
                let limits = limits(model)?;
                Speaker::<B>::load(model, tokenizer, conversation, limits, &device)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut room = Room {
            speakers,
            sampling: &self.args.sampling,
            file: self.file,
            stop: Stop::on_signal()?,
            warned: false,
            device,
        };
        room.welcome(backend)?;
        let mut lines = Lines::open(manifest::home().join("chat_lines"))?;
        while let Some(line) = lines.next()? {
            if !room.take(&line)? {
                break;
            }
        }
        Ok(())
    }
}

/// Those who answer, and where the conversation is kept.
struct Room<'a, B: ModelBackend> {
    speakers: Vec<Speaker<'a, B>>,
    sampling: &'a SamplingArgs,
    file: PathBuf,
    stop: Stop,
    /// Whether it was said that the conversation cannot be kept.
    warned: bool,
    device: B::Device,
}

impl<B: ModelBackend> Room<'_, B> {
    fn welcome(&self, backend: &str) -> Result<()> {
        let names: Vec<&str> = self.speakers.iter().map(|speaker| speaker.name()).collect();
        eprintln!(
            "{} on {backend}; /help lists commands, Ctrl-D ends",
            names.join(" and ")
        );
        let earlier = self.speakers[0].conversation.messages();
        if !earlier.is_empty() {
            eprintln!(
                "going on with {} messages; /reset forgets them",
                earlier.len()
            );
        }
        Ok(())
    }

    /// Answers a line or follows an order. Returns whether to go on.
    fn take(&mut self, line: &str) -> Result<bool> {
        match Order::parse(line) {
            Ok(Order::Nothing) => {}
            Ok(Order::Say(text)) => {
                for speaker in &mut self.speakers {
                    speaker.conversation.push(Message::user(&text));
                }
                self.answer()?;
            }
            Ok(Order::Help) => output::print(order::HELP)?,
            Ok(Order::Quit) => return Ok(false),
            Ok(Order::Reset) => {
                for speaker in &mut self.speakers {
                    speaker.conversation.reset();
                }
                eprintln!("forgotten; the system message stays");
            }
            Ok(Order::System(text)) => {
                for speaker in &mut self.speakers {
                    speaker.conversation.set_system(&text);
                }
                match text.as_str() {
                    "" => eprintln!("no system message from now on"),
                    _ => eprintln!("the system message from now on, for earlier messages too"),
                }
            }
            Ok(Order::Undo) => match self.undo() {
                true => eprintln!("the last message and its answer are gone"),
                false => eprintln!("there is no message to take back"),
            },
            Ok(Order::Retry) => {
                let asked = self
                    .speakers
                    .iter_mut()
                    .map(|s| s.conversation.drop_answer());
                match asked.fold(true, |all, had| all & had) {
                    true => self.answer()?,
                    false => eprintln!("there is no answer yet"),
                }
            }
            Ok(Order::Compare) => self.compare()?,
            Ok(Order::Save(path)) => match save(&path, &self.conversations()) {
                Ok(()) => eprintln!("saved to {}", path.display()),
                Err(error) => terminal::say(&error.to_string()),
            },
            Err(message) => terminal::say(&message),
        }
        Ok(true)
    }

    fn undo(&mut self) -> bool {
        let mut undone = true;
        for speaker in &mut self.speakers {
            undone &= speaker.conversation.undo();
        }
        undone
    }

    /// Every speaker answers the last message; a failure of one takes the message back.
    fn answer(&mut self) -> Result<()> {
        let several = self.speakers.len() > 1;
        for at in 0..self.speakers.len() {
            if several {
                output::print(&format!("[{}]\n", self.speakers[at].name()))?;
            }
            let (speaker, stop) = (&mut self.speakers[at], &self.stop);
            match stop.during(|stop| speaker.answer(self.sampling, stop, &self.device)) {
                Ok(Answer { text, note }) => {
                    speaker.conversation.push(Message::assistant(&text));
                    terminal::say(&note);
                }
                Err(Error::Backend(message)) => return Err(Error::Backend(message)),
                // What is wrong with this message may be right with the next one.
                Err(error) => {
                    terminal::say(&error.to_string());
                    self.speakers[..at].iter_mut().for_each(|speaker| {
                        speaker.conversation.drop_answer();
                    });
                    for speaker in &mut self.speakers {
                        speaker.conversation.drop_question();
                    }
                    return Ok(());
                }
            }
        }
        self.keep();
        Ok(())
    }

    /// The last message once more, answered by each model without its adapter; not kept.
    fn compare(&mut self) -> Result<()> {
        let mut compared = false;
        for speaker in &mut self.speakers {
            if !speaker.has_bare() {
                continue;
            }
            compared = true;
            if !speaker.conversation.has_answer() {
                eprintln!("there is no answer yet to compare with");
                return Ok(());
            }
            output::print(&format!("[{} without its adapter]\n", speaker.name()))?;
            let answer = |stop: &Stop| speaker.answer_bare(self.sampling, stop, &self.device);
            let answer = self.stop.during(answer)?;
            eprintln!("{}", answer.note);
        }
        if !compared {
            eprintln!(
                "nothing to compare with: /compare asks the model without its adapter, and there is none; \
                 `--against MODEL` has a second model answer every message"
            );
        }
        Ok(())
    }

    fn conversations(&self) -> Vec<(&str, &Conversation)> {
        let speakers = self.speakers.iter();
        speakers
            .map(|speaker| (speaker.name(), &speaker.conversation))
            .collect()
    }

    /// Writes the conversation to its file. A disk that is full does not end it.
    fn keep(&mut self) {
        if let Err(error) = save(&self.file, &self.conversations())
            && !std::mem::replace(&mut self.warned, true)
        {
            terminal::say(&format!("warning: the conversation is not kept: {error}"));
        }
    }
}
