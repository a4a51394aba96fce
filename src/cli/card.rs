//! The model card of an export: `README.md` with front matter for the hub, from the run's recipe, lineage and results.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::RunDir;
use crate::checkpoint::run_dir::read_info;
use crate::error::Result;
use crate::hub::{Hub, Repo};
use crate::model::manifest::{Source, known};
use crate::recipe::{find_run, run_report, to_ron};
use crate::report::{FlowSource, RunReport, StageSection, Table};
use crate::train::StageOutput;

/// The file's name.
pub(super) const CARD: &str = "README.md";

/// What a card is about.
pub(super) struct CardOf<'a> {
    /// The run's folder.
    pub(super) run: &'a Path,
    /// The stage whose result is exported.
    pub(super) stage: &'a str,
    /// What reads the files: `peft`, `transformers` or `gguf`.
    pub(super) library: &'static str,
    /// `owner/name`, where it is uploaded.
    pub(super) repo: Option<&'a str>,
    /// The hub, to ask for the base's licence.
    pub(super) hub: Option<&'a Hub>,
}

/// The base of a run.
#[derive(Default)]
struct Base {
    /// As the recipe has it.
    name: String,
    /// Its repository on the hub.
    repo: Option<String>,
    /// The commit that was used.
    commit: Option<String>,
    /// Its licence as the hub names it; `None` if it is not known.
    licence: Option<String>,
}

impl CardOf<'_> {
    /// The text of the card.
    ///
    /// # Errors
    /// When a file of the run cannot be read.
    pub(super) fn text(&self) -> Result<String> {
        let recipe = find_run(self.run)?;
        let report = run_report(&recipe, self.run, RunDir::is_in_use(self.run))?;
        let info = read_info(self.run).unwrap_or_default();
        let stages = chain(&report.stages, self.stage);
        let is_there = |name: &str| stages.iter().any(|stage| stage.name == name);
        let lineage = || info.lineage.iter().filter(|of| is_there(&of.stage));
        let repositories = lineage()
            .flat_map(|of| &of.data)
            .filter_map(|file| file.repository.as_deref()?.strip_prefix("datasets/"));
        let mut datasets: Vec<String> = repositories
            .map(|at| at.split('@').next().unwrap_or(at).to_owned())
            .collect();
        datasets.sort();
        datasets.dedup();
        let commits = lineage()
            .flat_map(|of| of.model_files())
            .filter_map(|file| file.repository.as_deref());
        let base = self.base(recipe.model.as_deref(), &commits.collect::<Vec<_>>());
        let is_reward = (recipe.stages.iter())
            .any(|stage| stage.name() == self.stage && stage.output() == StageOutput::RewardModel);
        let mut text = self.front_matter(&base, &datasets, &stages, is_reward);
        text.push_str(&self.body(&base, &report, &stages, &to_ron(&recipe)));
        Ok(text)
    }

    /// What is known of the base: from the manifests, the commit in the lineage, and the hub.
    fn base(&self, model: Option<&str>, commits: &[&str]) -> Base {
        let Some(name) = model else {
            return Base::default();
        };
        let manifest = known(name);
        let repo = match manifest.as_ref().map(|manifest| &manifest.source) {
            Some(Source::Hub { repo, .. }) => Some(repo.clone()),
            Some(Source::Embedded | Source::Local) => None,
            None => {
                let id = name.split('@').next().unwrap_or(name);
                (Repo::is_id(id) && !Path::new(name).exists()).then(|| id.to_owned())
            }
        };
        let commit = repo.as_ref().and_then(|repo| {
            let at = |text: &&&str| text.split_once('@').is_some_and(|(id, _)| id == repo);
            commits.iter().find(at).map(|text| (*text).to_owned())
        });
        let licence = manifest.map(|manifest| manifest.licence.to_lowercase());
        let licence = licence.or_else(|| licence_on_hub(self.hub?, repo.as_ref()?));
        Base {
            name: name.to_owned(),
            commit: commit.and_then(|text| Some(text.split_once('@')?.1.to_owned())),
            repo,
            licence,
        }
    }

    fn front_matter(
        &self,
        base: &Base,
        datasets: &[String],
        stages: &[&StageSection],
        is_reward: bool,
    ) -> String {
        let mut yaml = String::from("---\n");
        if let Some(repo) = &base.repo {
            let relation = match self.library {
                "peft" => "adapter",
                _ => "finetune",
            };
            yaml.push_str(&format!(
                "base_model: {}\nbase_model_relation: {relation}\n",
                quoted(repo)
            ));
        }
        if !datasets.is_empty() {
            let lines = datasets.iter().map(|name| format!("- {}\n", quoted(name)));
            yaml.push_str(&format!("datasets:\n{}", lines.collect::<String>()));
        }
        // The hub has a list of licences; one that is not on it is `other` with a name.
        match &base.licence {
            Some(licence) if ON_HUB.contains(&licence.as_str()) => {
                yaml.push_str(&format!("license: {}\n", quoted(licence)));
            }
            Some(licence) => yaml.push_str(&format!(
                "license: other\nlicense_name: {}\n",
                quoted(licence)
            )),
            None => {}
        }
        let library = self.library;
        let task = match is_reward {
            true => "text-classification",
            false => "text-generation",
        };
        yaml.push_str(&format!(
            "library_name: {library}\npipeline_tag: {task}\ntags:\n- tempering\n"
        ));
        let mut kinds: Vec<String> = stages
            .iter()
            .map(|stage| stage.kind.to_lowercase())
            .collect();
        if is_reward {
            kinds.push("reward-model".into());
        }
        kinds.dedup();
        for kind in kinds {
            yaml.push_str(&format!("- {}\n", quoted(&kind)));
        }
        yaml.push_str("---\n\n");
        yaml
    }

    fn body(
        &self,
        base: &Base,
        report: &RunReport,
        stages: &[&StageSection],
        recipe: &str,
    ) -> String {
        let title = self.repo.and_then(|repo| repo.split_once('/'));
        let title = title.map_or_else(
            || format!("{} of {}", self.stage, report.title),
            |(_, name)| name.to_owned(),
        );
        let what = match self.library {
            "peft" => "An adapter in the layout of PEFT",
            "gguf" => "A file for llama.cpp and Ollama",
            _ => "A model in the layout of transformers",
        };
        let mut text = format!(
            "# {}\n\n{what}: the result of the stage `{}` of the recipe `{}`, trained with tempering {}.\n\n",
            line(&title),
            self.stage,
            report.title,
            env!("CARGO_PKG_VERSION")
        );
        let origin = match (&base.repo, &base.commit) {
            (Some(repo), Some(commit)) => format!("{repo} at commit {commit}"),
            (Some(repo), None) => repo.clone(),
            (None, _) if base.name.is_empty() => "each stage names its own".to_owned(),
            (None, _) => base.name.clone(),
        };
        let licence = base.licence.clone().unwrap_or_else(|| {
            "not known here: that of the base and of the data holds, set `license` above".to_owned()
        });
        let facts = [("base", origin), ("licence of the base", licence)];
        let facts: Vec<Vec<String>> = (facts.into_iter())
            .map(|(name, value)| (name.to_owned(), value))
            .chain(
                report
                    .facts
                    .iter()
                    .filter(|(name, _)| name != "model")
                    .cloned(),
            )
            .map(|(name, value)| vec![name, value])
            .collect();
        text.push_str(&format!(
            "{}\n## Method\n\n",
            Table::new(&["", "value"], &facts)
        ));
        for stage in stages {
            text.push_str(&format!(
                "**{}** ({}): {}\n\n",
                stage.name,
                stage.kind,
                line(&stage.record.summary)
            ));
            let settings: Vec<Vec<String>> = (stage.settings.iter())
                .map(|(name, value)| vec![name.clone(), value.clone()])
                .collect();
            text.push_str(&format!(
                "{}\n",
                Table::new(&["setting", "value"], &settings)
            ));
        }
        text.push_str(&self.results(report));
        text.push_str(&format!(
            "## Made by\n\n    temper recipe recipe.ron\n    temper export --run {} --stage {}{}\n\n",
            self.run.display(),
            self.stage,
            self.repo.map_or(String::new(), |repo| format!(" --push {repo}"))
        ));
        // A fence that is longer than any in the recipe.
        text.push_str(&format!(
            "<details><summary>recipe.ron, with all defaults</summary>\n\n~~~~~~\n{}\n~~~~~~\n\n</details>\n",
            recipe.trim_end()
        ));
        text
    }

    /// The tables of the stages that measure this result: comparisons in which it takes part, and its own.
    fn results(&self, report: &RunReport) -> String {
        let mut parts = Vec::new();
        for stage in &report.stages {
            let is_own = stage.name == self.stage;
            let compared = stage.record.comparison.as_ref().filter(|comparison| {
                let mut policies = comparison.policies.iter();
                policies.any(|policy| policy.name == self.stage)
            });
            if let Some(comparison) = compared {
                parts.push(format!("{}:", line(&stage.record.summary)));
                parts.push(comparison.table().to_string());
                parts.push(comparison.gains());
            } else if let (true, Some(table)) = (is_own, &stage.record.table) {
                parts.push(table.to_string());
            }
            if is_own {
                let findings = stage.record.findings.iter();
                let findings = findings.map(|finding| format!("- {}", line(&finding.text)));
                parts.push(findings.collect::<Vec<_>>().join("\n"));
            }
        }
        let parts = parts.iter().map(|part| part.trim());
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!("## Results\n\n{}\n\n", parts.join("\n\n")),
        }
    }
}

/// Licences that the hub knows, of those that models have as a rule.
const ON_HUB: &[&str] = &[
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "bigscience-bloom-rail-1.0",
    "creativeml-openrail-m",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "unlicense",
    "other",
];

/// The licence that the base's page on the hub names; `None` if it names none or the hub cannot be asked.
fn licence_on_hub(hub: &Hub, repo: &str) -> Option<String> {
    if hub.settings().offline {
        return None;
    }
    let repo = Repo::model(repo, crate::hub::MAIN);
    let page: Value = hub.json(&repo, &format!("api/models/{}", repo.id)).ok()?;
    page["cardData"]["license"].as_str().map(str::to_owned)
}

/// The stage and those whose results it is made from, in the order of the recipe.
fn chain<'a>(stages: &'a [StageSection], last: &str) -> Vec<&'a StageSection> {
    let mut wanted: Vec<bool> = stages.iter().map(|stage| stage.name == last).collect();
    // A stage reads from earlier ones alone.
    for index in (0..stages.len()).rev() {
        if !wanted[index] {
            continue;
        }
        for (from, _) in &stages[index].flows {
            if let FlowSource::Stage(from) = from {
                wanted[*from] = true;
            }
        }
    }
    let found = stages.iter().zip(wanted);
    found
        .filter_map(|(stage, wanted)| wanted.then_some(stage))
        .collect()
}

/// A text as one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A YAML scalar: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    match !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
    {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_yaml_are_quoted_where_they_must_be() {
        assert_eq!(quoted("Qwen/Qwen3-0.6B"), "Qwen/Qwen3-0.6B");
        assert_eq!(quoted("1.0"), "\"1.0\"");
        assert_eq!(quoted("a: \"b\"\n"), r#""a: \"b\"\n""#);
    }
}
