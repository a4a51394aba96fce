//! The tensors of an adapter's file, checked against a model.

use super::beside::StoredBeside;
use super::config::ModelConfig;
use super::stored_tables::StoredTables;
use super::token_rows::{StoredRows, token_rows};
use super::weights::WeightSource;
use crate::error::{Error, Problem, Result};
use crate::peft::files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::{AdapterConfig, LinearSpec, TaskType, saved_key, tensor_key};

/// Name of a classifier's head in files.
pub(super) const SCORE_WEIGHT: &str = "score.weight";

/// The tensors of an adapter file, checked against a model.
#[derive(Default)]
pub(super) struct StoredAdapter {
    /// Paths of the layers that have an adapter.
    pub(super) modules: Vec<String>,
    /// Each key with its spelling in the file.
    names: Vec<(String, String)>,
    /// Key, shape and the file's spelling of tensors that all layers share.
    pub(super) shared: Vec<(&'static str, [usize; 2], String)>,
    pub(super) score: Option<String>,
    pub(super) beside: StoredBeside,
    pub(super) rows: StoredRows,
    pub(super) tables: StoredTables,
    /// Warnings about patterns without a matching layer.
    pub(super) unused: Vec<String>,
}

impl StoredAdapter {
    /// # Errors
    /// `Error::Weights` listing every tensor that is missing, surplus or mis-shaped; those of reading.
    pub(super) fn check(
        adapter: &AdapterConfig,
        source: &dyn WeightSource,
        config: &ModelConfig,
    ) -> Result<Self> {
        let mut stored = Self::default();
        let linear = config.adaptable_modules(&adapter.spec);
        let selection = adapter.selection();
        let targeted: Vec<&LinearSpec> = (linear.iter())
            .filter(|layer| selection.selects(layer))
            .collect();
        for layer in &targeted {
            let checked = adapter.spec.check_layer(layer);
            checked.map_err(|message| Error::format(source.path(), message))?;
        }
        stored.unused = adapter.unused(&targeted);
        let largest = targeted.iter().fold([0, 0], |[inputs, outputs], layer| {
            [
                inputs.max(layer.in_features),
                outputs.max(layer.out_features),
            ]
        });
        let shared = adapter.spec.shared_tensors(largest);
        let adapted: Vec<String> = targeted.iter().map(|layer| layer.name.clone()).collect();
        let own = match adapter.task_type {
            TaskType::CausalLm => config.tensors(),
            TaskType::SeqCls => config.classifier_tensors(),
        };
        let (beside, mut problems) =
            StoredBeside::check(&adapter.spec, config, &own, &adapted, source)?;
        let classifier = adapter.task_type == TaskType::SeqCls;
        match token_rows(&adapter.spec, config, classifier, &adapted) {
            Ok(tables) => {
                let (rows, of_rows) = StoredRows::check(tables, config, source)?;
                problems.extend(of_rows);
                stored.rows = rows;
            }
            Err(error) => problems.push(Problem::new(ADAPTER_CONFIG, error.to_string())),
        }
        let tables = StoredTables::find(source, config).without(|name| beside.holds(name));
        problems.extend(tables.problems(source, config));
        (stored.beside, stored.tables) = (beside, tables);
        let mut tensors = Vec::new();
        for layer in &linear {
            for (name, shape) in adapter.spec.tensors(layer) {
                tensors.push((layer, name, shape));
            }
        }
        let mut names: Vec<&'static str> = tensors.iter().map(|(_, name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        let (mut whole, mut own_names) = (Vec::new(), Vec::new());
        for name in source.names() {
            if let Some((key, shape)) = shared.iter().find(|(key, _)| is_shared(&name, key)) {
                stored.shared.push((*key, *shape, name));
                continue;
            }
            let is_own = stored.beside.holds(&name) || stored.rows.holds(&name);
            if is_own || stored.tables.holds(&name) {
                continue;
            }
            match parse_key(&name, &names) {
                StoredKey::Layer {
                    path,
                    name: tensor,
                    adapter: own,
                } => {
                    if !own_names.contains(&own) {
                        own_names.push(own);
                    }
                    match layer_at(&linear, &path) {
                        Some(layer) if targeted.contains(&layer) => {
                            stored.names.push((tensor_key(&layer.name, tensor), name));
                            if !stored.modules.contains(&layer.name) {
                                stored.modules.push(layer.name.clone());
                            }
                        }
                        Some(_) => problems.push(Problem::new(
                            &name,
                            "surplus; the configuration has no adapter on this layer",
                        )),
                        None => problems
                            .push(Problem::new(&name, "surplus; the model has no such layer")),
                    }
                }
                StoredKey::Whole(parameter) if parameter == SCORE_WEIGHT => {
                    let expected = [1, config.output_size()];
                    match source.shape(&name) {
                        Some(shape) if shape == expected => stored.score = Some(name),
                        shape => problems.push(Problem::new(
                            &name,
                            format!(
                                "expected shape {expected:?}, found {:?}",
                                shape.unwrap_or_default()
                            ),
                        )),
                    }
                }
                StoredKey::Whole(parameter) => whole.push((name, parameter)),
                StoredKey::Original => {}
            }
        }
        problems.extend(stored_whole(&whole, config));
        if own_names.len() > 1 {
            let named: Vec<&str> = (own_names.iter())
                .map(|name| name.as_deref().unwrap_or("(without a name)"))
                .collect();
            problems.push(Problem::new(
                ADAPTER_WEIGHTS,
                format!(
                    "holds tensors of {} adapters: {}; keep those of one",
                    named.len(),
                    named.join(", ")
                ),
            ));
        }
        if adapter.task_type == TaskType::SeqCls && stored.score.is_none() && problems.is_empty() {
            problems.push(Problem::new(saved_key(SCORE_WEIGHT), "missing"));
        }
        for (key, expected) in &shared {
            let found = stored.shared.iter().find(|(known, ..)| known == key);
            let shape = found.and_then(|(.., name)| source.shape(name));
            match shape {
                None => problems.push(Problem::new(
                    *key,
                    format!("missing; expected shape {expected:?}"),
                )),
                Some(shape) if shape != expected => problems.push(Problem::new(
                    *key,
                    format!("expected shape {expected:?}, found {shape:?}"),
                )),
                Some(_) => {}
            }
        }
        for (layer, tensor, expected) in &tensors {
            if !targeted.contains(layer) {
                continue;
            }
            let key = tensor_key(&layer.name, tensor);
            let name = stored.name(&key);
            match source.shape(name) {
                None => problems.push(Problem::new(
                    name,
                    format!("missing; expected shape {expected:?}"),
                )),
                Some(shape) if shape != *expected => {
                    problems.push(Problem::new(
                        name,
                        format!("expected shape {expected:?}, found {shape:?}"),
                    ));
                }
                Some(_) => {}
            }
        }
        if stored.modules.is_empty() && stored.rows.is_empty() && problems.is_empty() {
            problems.push(Problem::new(
                names.join(", "),
                format!(
                    "the file holds no tensor of a {} adapter",
                    adapter.spec.peft_type()
                ),
            ));
        }
        if problems.is_empty() {
            return Ok(stored);
        }
        Err(Error::Weights {
            path: source.path().to_path_buf(),
            problems,
        })
    }

    /// The spelling of a tensor's key in the file.
    pub(super) fn name<'a>(&'a self, key: &'a str) -> &'a str {
        let found = self.names.iter().find(|(known, _)| known == key);
        found.map_or(key, |(_, stored)| stored)
    }
}

/// Whether a name in a file is that of a tensor that all layers share, perhaps with the adapter's own name at its end.
fn is_shared(name: &str, key: &str) -> bool {
    name == key || (name.strip_prefix(key)).is_some_and(|rest| rest.starts_with('.'))
}

/// The layer at `path`, or the only one whose path ends with it: models saved without a head have shorter paths.
fn layer_at<'a>(linear: &'a [LinearSpec], path: &str) -> Option<&'a LinearSpec> {
    // The text model inside of one for text and images.
    let path = path.replacen("language_model.", "", 1);
    let whole = linear.iter().find(|layer| layer.name == path);
    whole.or_else(|| {
        let end = format!(".{path}");
        let mut ending = linear.iter().filter(|layer| layer.name.ends_with(&end));
        ending.next().filter(|_| ending.next().is_none())
    })
}

/// Problems of tensors that are not part of an adapter, given their names in the file and the parameters that they hold.
fn stored_whole(tensors: &[(String, String)], config: &ModelConfig) -> Vec<Problem> {
    let specs = config.tensors();
    let of_model = |parameter: &str| {
        let end = format!(".{parameter}");
        specs
            .iter()
            .any(|spec| spec.name == parameter || spec.name.ends_with(&end))
    };
    let (whole, unknown): (Vec<_>, Vec<_>) = tensors
        .iter()
        .partition(|(_, parameter)| of_model(parameter));
    let some = |tensors: &[&(String, String)]| match tensors {
        [only] => only.0.clone(),
        [first, second] => format!("{}, {}", first.0, second.0),
        [first, ..] => format!("{} and {} more", first.0, tensors.len() - 1),
        [] => String::new(),
    };
    let mut problems = Vec::new();
    if !whole.is_empty() {
        problems.push(
            Problem::new(
                some(&whole),
                "stored whole, and modules_to_save does not name it; beside adapters only embedding, head and a classifier's \"score\" can be",
            )
            .with_help(
                "if they were not trained, save the adapter again with save_pretrained(.., save_embedding_layers=False); \
                 else merge it into its base with PEFT (merge_and_unload) and take the merged model",
            ),
        );
    }
    if !unknown.is_empty() {
        problems.push(Problem::new(
            some(&unknown),
            "surplus; expected base_model.model.<layer>.<tensor of the adapter> for layers of the model, and score.weight",
        ));
    }
    problems
}
