//! Responses of a run's policies to the same prompts, for people to compare.

use std::path::Path;

use serde_json::{Map, json};

use super::LabelArgs;
use crate::backend::{Task, dispatch};
use crate::cli::args::{ComputeArgs, ModelArgs};
use crate::cli::eval_stages::find_policy;
use crate::cli::model::UnloadedModel;
use crate::cli::respond::{self, MAX_NEW_TOKENS, Request, Show};
use crate::cli::rows;
use crate::data::{Prompt, Row, Tokenizer};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;

/// The responses of `--policies` to the prompts of `data`: a row for each prompt, with the names of the policies.
///
/// # Errors
/// `Error::Usage` for stages without a policy; those of rows, loading and the backend.
pub(super) fn responses(
    args: &LabelArgs,
    run: &Path,
    data: &Path,
    compute: &ComputeArgs,
) -> Result<Vec<Row>> {
    let of_run = ModelArgs {
        run: Some(run.to_path_buf()),
        model: None,
        ..ModelArgs::of(String::new())
    };
    let models = (args.policies.iter())
        .map(|name| find_policy(&of_run, name, "--policies"))
        .collect::<Result<Vec<UnloadedModel>>>()?;
    let mut drawn = Vec::new();
    let rows = rows::read(data)?;
    for (name, model) in args.policies.iter().zip(&models) {
        let tokenizer = model.tokenizer()?;
        let longest = args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
        let prompts = rows::prompts(&rows, Some(&tokenizer), model, longest)?;
        let repeated = prompts
            .iter()
            .flat_map(|p| std::iter::repeat_n(p.clone(), args.num_responses));
        eprintln!("{name}: responses to {} prompts", prompts.len());
        let task = Drawing {
            args,
            model,
            tokenizer: &tokenizer,
            prompts: repeated.collect(),
        };
        drawn.push((prompts, dispatch(compute.backend, compute.device, task)?));
    }
    let Some((prompts, _)) = drawn.first() else {
        return Err(Error::Usage(
            "--policies: expected at least one stage".into(),
        ));
    };
    let row = |(at, prompt): (usize, &Prompt)| {
        let mut columns = Map::new();
        // Messages stay messages: stages that train render them by their own template.
        let as_given = prompt.row.get("prompt").cloned();
        columns.insert(
            "prompt".into(),
            as_given.unwrap_or_else(|| json!(prompt.text)),
        );
        let of_prompt = at * args.num_responses..(at + 1) * args.num_responses;
        let texts: Vec<&String> = drawn
            .iter()
            .flat_map(|(_, texts)| &texts[of_prompt.clone()])
            .collect();
        let names = args
            .policies
            .iter()
            .flat_map(|name| std::iter::repeat_n(name, args.num_responses));
        columns.insert("responses".into(), json!(texts));
        columns.insert("policies".into(), json!(names.collect::<Vec<_>>()));
        Row {
            columns,
            path: data.to_path_buf(),
            line: at + 1,
        }
    };
    Ok(prompts.iter().enumerate().map(row).collect())
}

/// One policy's responses on a backend.
struct Drawing<'a> {
    args: &'a LabelArgs,
    model: &'a UnloadedModel,
    tokenizer: &'a Tokenizer,
    prompts: Vec<Prompt>,
}

impl Task for Drawing<'_> {
    type Output = Vec<String>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Vec<String>> {
        let model = self.model.language_model::<B>(&device)?;
        let sampling = &self.args.sampling;
        let defaults = (MAX_NEW_TOKENS, 1.0);
        let request = Request {
            prompts: &self.prompts,
            options: &respond::options(
                sampling,
                defaults,
                &self.prompts,
                Some(self.tokenizer),
                &self.model.config,
            ),
            tokenizer: Some(self.tokenizer),
            stops: &sampling.stop,
            seed: sampling.seed,
            show: Show::Progress,
        };
        let responses = request.run(&model, &device)?;
        Ok(responses
            .into_iter()
            .map(|response| response.text)
            .collect())
    }
}
