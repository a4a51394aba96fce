//! Rows of embedding and output head that are trained for single tokens: chosen, checked, put on a model, and found in files.

use std::collections::HashSet;

use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

use super::config::ModelConfig;
use super::trained::{module, no_head};
use super::weights::WeightSource;
use crate::data::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::params::HostTensor;
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::{
    Adaptable, AdapterSpec, LayerKind, Peft, TOKEN_ROWS, TokenName, TrainedRows, names_module,
    tensor_key,
};

/// The tokens whose rows of one table are trained.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TableRows {
    pub(super) kind: LayerKind,
    /// Path of the table.
    pub(super) path: String,
    pub(super) tokens: Vec<TokenName>,
    pub(super) width: usize,
    /// Name of the tensor in files.
    pub(super) key: String,
}

impl TableRows {
    /// Shape of the tensor in files.
    pub(super) fn shape(&self) -> Vec<usize> {
        vec![self.tokens.len(), self.width]
    }

    /// The ids of the tokens.
    ///
    /// # Errors
    /// `Error::Usage` for one that is named by its text: no tokenizer was asked ([`with_token_ids`]).
    pub(super) fn ids(&self) -> Result<Vec<u32>> {
        let id = |token: &TokenName| match token {
            TokenName::Id(id) => Ok(*id),
            TokenName::Text(text) => Err(Error::Usage(format!(
                "{text:?}: a token is named by its text, and there is no tokenizer; name its id"
            ))),
        };
        self.tokens.iter().map(id).collect()
    }
}

/// `peft` with the ids that a model's tokenizer gives in place of texts.
///
/// # Errors
/// `Error::Invalid` with every text that is no token.
pub fn with_token_ids(peft: &Peft, tokenizer: &Tokenizer) -> Result<Peft, Vec<Problem>> {
    peft.with_token_ids(&|text| {
        let found = tokenizer.token_named(text);
        found.map_err(|error| error.to_string())
    })
}

/// The tables of a causal model, or of a classifier on its backbone, of which `spec` trains rows.
///
/// # Errors
/// `Error::Usage` for what names no table or no token, and for a table that is trained in another way, too; `adapted` are the paths of
/// layers with an adapter.
pub(super) fn token_rows(
    spec: &AdapterSpec,
    config: &ModelConfig,
    classifier: bool,
    adapted: &[String],
) -> Result<Vec<TableRows>> {
    let Some(named) = spec.token_rows() else {
        return Ok(Vec::new());
    };
    let (key, tied) = (named.key, config.tie_word_embeddings());
    let shape = config.decoder_shape();
    let paths = table_paths(config);
    let mut tables: Vec<TableRows> = Vec::new();
    let mut problems = Vec::new();
    for (entry, tokens) in &named.tables {
        let of = |kind: LayerKind| {
            let (path, width) = match kind {
                LayerKind::Head => (&paths[1], config.output_size()),
                LayerKind::Embedding | LayerKind::Linear => (&paths[0], shape.embedding),
            };
            TableRows {
                kind,
                path: path.clone(),
                tokens: tokens.to_vec(),
                width,
                key: tensor_key(path, &format!("{}{TOKEN_ROWS}", named.prefix)),
            }
        };
        let table = match entry {
            None => of(LayerKind::Embedding),
            Some(entry) if paths[0].ends_with(entry) => of(LayerKind::Embedding),
            Some(entry) if names_module(entry, config.tables()[1]) => of(LayerKind::Head),
            Some(entry) => {
                problems.push(format!(
                    "{entry:?} is the end of no table's path; this model has {} and {}",
                    paths[0], paths[1]
                ));
                continue;
            }
        };
        if classifier && table.kind == LayerKind::Head {
            return Err(no_head(key, &table.path));
        }
        match tables.iter().find(|known| known.kind == table.kind) {
            Some(known) => problems.push(format!("{} is named twice", known.path)),
            None => tables.push(table),
        }
    }
    if tied && let Some(at) = (tables.iter()).position(|table| table.kind == LayerKind::Head) {
        let head = tables.remove(at);
        if !(tables.iter()).any(|embedding| embedding.tokens == head.tokens) {
            problems.push(format!(
                "{} is tied to {} in this model, the two are one parameter; name the tokens of {} alone, and the head has the same rows \
                 (PEFT parts the two sides here, which would be another model)",
                head.path, paths[0], paths[0]
            ));
        }
    }
    for table in &tables {
        problems.extend(impossible(table, spec, config, adapted));
    }
    match problems.is_empty() {
        true => Ok(tables),
        false => {
            let problems = problems.iter().map(|problem| format!("{key}: {problem}"));
            Err(Error::Usage(problems.collect::<Vec<_>>().join("; ")))
        }
    }
}

/// Paths of embedding and output head as transformers names them in memory.
fn table_paths(config: &ModelConfig) -> [String; 2] {
    [module(config.embedding_name()).to_owned(), "lm_head".into()]
}

/// Why rows of a table cannot be trained.
fn impossible(
    table: &TableRows,
    spec: &AdapterSpec,
    config: &ModelConfig,
    adapted: &[String],
) -> Vec<String> {
    let (rows, path) = (config.vocab_size(), &table.path);
    let mut problems = Vec::new();
    let mut named = HashSet::new();
    for token in &table.tokens {
        if !named.insert(token) {
            problems.push(format!("token {token} is named twice"));
        }
        match token {
            TokenName::Id(id) if *id as usize >= rows => problems.push(format!(
                "there is no token {id}: {path} has {rows} rows, for ids 0 to {}",
                rows - 1
            )),
            _ => {}
        }
    }
    // Those of both roles of a tied table.
    let roles = match config.tie_word_embeddings() {
        true => table_paths(config).to_vec(),
        false => vec![path.clone()],
    };
    let weight = |path: &String| format!("{path}.weight");
    let mut saved = spec.beside().entries();
    let whole = |entry: &&str| roles.iter().any(|path| names_module(entry, &weight(path)));
    if let Some(entry) = saved.find(whole) {
        problems.push(format!(
            "{path} is trained whole by \"{entry}\" among modules_to_save; leave one of the two out"
        ));
    }
    if let Some(other) = roles.iter().find(|path| adapted.contains(path)) {
        problems.push(format!(
            "{other} has an adapter by target_modules, and a row cannot be replaced and added to at once; leave one of the two out"
        ));
    }
    problems
}

/// Puts rows for `tables` on a model, with the values that the tables have.
///
/// # Errors
/// As [`TableRows::ids`]; `Error::Usage` for a table that the model does not have.
pub(super) fn attach_token_rows<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    tables: &[TableRows],
    device: &B::Device,
) -> Result<()> {
    for table in tables {
        let ids = table.ids()?;
        let values = model.table_rows(table.kind, &ids, device);
        put(model, config, table, ids, values)?;
    }
    Ok(())
}

fn put<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    table: &TableRows,
    ids: Vec<u32>,
    values: Option<Tensor<B, 2>>,
) -> Result<()> {
    let Some(values) = values else {
        return Err(no_head(TOKEN_ROWS, &table.path));
    };
    let rows = TrainedRows::new(values, ids, config.vocab_size(), table.key.clone());
    let mut rows = Some(rows);
    model.for_each_token_rows(&mut |kind, present| {
        if kind == table.kind {
            *present = rows.take();
        }
    });
    Ok(())
}

/// The tokens of a model's trained rows, by the name of their tensor in files.
pub(super) fn present_rows<B: Backend, M: Adaptable<B>>(model: &mut M) -> Vec<(String, Vec<u32>)> {
    let mut present = Vec::new();
    model.for_each_token_rows(&mut |_, rows| {
        let rows = rows.iter();
        present.extend(rows.map(|rows| (rows.key().to_owned(), rows.tokens().to_vec())));
    });
    present
}

/// The rows of a tied head: PEFT's own method stores those of the embedding a second time, and misses them where they are not.
pub(super) fn tied_rows(
    spec: &AdapterSpec,
    config: &ModelConfig,
    tensors: &[HostTensor],
) -> Option<HostTensor> {
    let rows = spec.token_rows()?;
    if !config.tie_word_embeddings() || !rows.prefix.is_empty() {
        return None;
    }
    let paths = table_paths(config);
    let [embedding, head] = [0, 1].map(|role| tensor_key(&paths[role], TOKEN_ROWS));
    let (_, shape, values) = tensors.iter().find(|(name, ..)| *name == embedding)?;
    Some((head, shape.clone(), values.clone()))
}

/// The name in files of the table at `path` beside its trained rows, if it has any; `rows` are their names.
pub(super) fn beside_rows<'a>(
    path: &str,
    mut rows: impl Iterator<Item = &'a String>,
) -> Option<String> {
    let of_table = tensor_key(path, "");
    let key = rows.find(|key| key.starts_with(&of_table))?;
    Some(key.replace(TOKEN_ROWS, "base_layer.weight"))
}

/// Trained rows in an adapter's file: the table, and the name of its tensor in the file.
#[derive(Debug, Default)]
pub(super) struct StoredRows {
    tables: Vec<(TableRows, String)>,
    /// The file's name of a second copy, of a tied head.
    copy: Option<String>,
}

impl StoredRows {
    /// Finds the rows of `tables` in the file, and what is wrong with them.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn check(
        tables: Vec<TableRows>,
        config: &ModelConfig,
        source: &dyn WeightSource,
    ) -> Result<(Self, Vec<Problem>)> {
        let paths = table_paths(config);
        let (mut stored, mut problems) = (Self::default(), Vec::new());
        let found: Vec<(usize, String)> = (source.names().into_iter())
            .filter_map(|name| Some((of_table(&name, &paths)?, name)))
            .collect();
        let at = |role: usize| {
            let mut found = found.iter();
            found
                .find(|(at, _)| *at == role)
                .map(|(_, name)| name.clone())
        };
        for table in tables {
            let (role, expected) = (usize::from(table.kind == LayerKind::Head), table.shape());
            let Some(name) = at(role) else {
                let message = format!("missing; expected shape {expected:?}");
                problems.push(Problem::new(&table.key, message));
                continue;
            };
            match source.shape(&name) {
                Some(shape) if shape != expected => {
                    let message = format!("expected shape {expected:?}, found {shape:?}");
                    problems.push(Problem::new(name, message));
                }
                _ => stored.tables.push((table, name)),
            }
        }
        // PEFT stores the rows of a tied head a second time.
        if let (true, [(_, embedding)], Some(head)) = (
            config.tie_word_embeddings(),
            stored.tables.as_slice(),
            at(1),
        ) {
            if source.shape(&head) != source.shape(embedding)
                || !source.same_values(embedding, &head)?
            {
                let message = format!("other numbers than {embedding}, to which it is tied");
                problems.push(Problem::new(&head, message));
            }
            stored.copy = Some(head);
        }
        Ok((stored, problems))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether the file's tensor of that name is one of them.
    pub(super) fn holds(&self, name: &str) -> bool {
        let names = self.tables.iter().map(|(_, name)| name);
        names.chain(&self.copy).any(|known| known == name)
    }

    /// Puts them on the model.
    ///
    /// # Errors
    /// Those of reading; `Error::Usage` for a table that the model does not have.
    pub(super) fn load<B: ModelBackend, M: Adaptable<B>>(
        &self,
        model: &mut M,
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &B::Device,
    ) -> Result<()> {
        for (table, name) in &self.tables {
            let data = TensorData::new(source.read(name)?, table.shape());
            let values = Tensor::from_data(data, device);
            put(model, config, table, table.ids()?, Some(values))?;
        }
        Ok(())
    }
}

/// The index among `paths` of the table whose rows a tensor of a file holds.
fn of_table(name: &str, paths: &[String; 2]) -> Option<usize> {
    let StoredKey::Layer { path, .. } = parse_key(name, &[TOKEN_ROWS]) else {
        return None;
    };
    let path = path.strip_suffix(".token_adapter").unwrap_or(&path);
    let end = format!(".{path}");
    let found = |known: &String| known == path || known.ends_with(&end);
    paths.iter().position(found)
}
