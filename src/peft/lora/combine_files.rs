//! What the files of several LoRA adapters hold, layer by layer: the matrices that are combined, and tables of the base.

use std::collections::BTreeMap;

use super::{A, B_NAME, EMBEDDING_A, EMBEDDING_B, LoraConfig};
use crate::error::{Error, Result};
use crate::params::HostTensor;
use crate::peft::keys::{saved_key, tensor_key};

/// A configuration and tensors by key.
pub(super) type LowRank<'a> = (&'a LoraConfig, &'a BTreeMap<String, HostTensor>);

/// Names of a layer's two matrices, as files hold them.
pub(super) type Names = [&'static str; 2];

/// Those of linear layers and the output head, and those of an embedding, whose rows are the inputs.
const NAMES: [Names; 2] = [[A, B_NAME], [EMBEDDING_A, EMBEDDING_B]];

/// The names of the matrices of which one has this key; `None` for a key of something else.
fn names_of(key: &str) -> Option<Names> {
    let ends = |name: &str| {
        key.strip_suffix(name)
            .is_some_and(|path| path.ends_with('.'))
    };
    (NAMES.into_iter()).find(|names| names.iter().any(|name| ends(name)))
}

/// Paths of the layers, with the names of their matrices and the adapters that have one there.
pub(super) fn layers_of(adapters: &[LowRank<'_>]) -> BTreeMap<String, (Names, Vec<usize>)> {
    let mut layers: BTreeMap<String, (Names, Vec<usize>)> = BTreeMap::new();
    for (index, (_, tensors)) in adapters.iter().enumerate() {
        for key in tensors.keys() {
            for names in NAMES {
                let end = tensor_key("", names[0]);
                let (before, after) = end
                    .split_once("..")
                    .expect("a path stands between two dots");
                let path = key.strip_prefix(&format!("{before}."));
                if let Some(path) = path.and_then(|key| key.strip_suffix(&format!(".{after}"))) {
                    let (_, members) =
                        (layers.entry(path.to_owned())).or_insert((names, Vec::new()));
                    members.push(index);
                }
            }
        }
    }
    layers
}

/// What PEFT adds to the path of a layer with an adapter on it.
pub(super) const BASE_LAYER: &str = ".base_layer";

/// Shape and numbers of a table.
pub(super) type Table<'a> = (&'a Vec<usize>, &'a Vec<f32>);

/// The tensors that are no part of an adapter, by path: embedding and head of the base, which files hold where an adapter is on them or
/// tokens were added.
pub(super) fn tables_of<'a>(adapters: &[LowRank<'a>]) -> Result<BTreeMap<String, Table<'a>>> {
    let mut tables: BTreeMap<String, (usize, Table<'a>)> = BTreeMap::new();
    for (index, (_, tensors)) in adapters.iter().enumerate() {
        for (key, (_, shape, values)) in tensors.iter().filter(|(key, _)| names_of(key).is_none()) {
            let refused =
                |what: String| Error::Usage(format!("adapter {}: {key} {what}", index + 1));
            let before = saved_key("");
            let path = key
                .strip_prefix(&before)
                .and_then(|key| key.strip_suffix(".weight"));
            let (Some(path), 2) = (path, shape.len()) else {
                return Err(refused("is no matrix of LoRA".into()));
            };
            let path = path.strip_suffix(BASE_LAYER).unwrap_or(path).to_owned();
            let (first, known) = tables.entry(path).or_insert((index, (shape, values)));
            if *known != (shape, values) {
                return Err(refused(format!(
                    "holds other numbers than in adapter {}: they stand on different bases; merge each into its own",
                    *first + 1
                )));
            }
        }
    }
    let tables = tables.into_iter();
    Ok(tables.map(|(path, (_, table))| (path, table)).collect())
}
