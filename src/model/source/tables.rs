//! Embedding and output head of a model: those of its base's files, or what its adapters' files make of them.

use std::path::Path;

use super::ModelSource;
use crate::error::Result;
use crate::model::adapter_weights;
use crate::model::beside::stored_apart;
use crate::model::config::ModelConfig;
use crate::model::resize::ResizedTables;
use crate::model::weights::heads::{SecondName, StoredHead, stored_head, tied_pair};
use crate::model::weights::{self, WeightSource};
use crate::peft::{AdapterConfig, TaskType};

/// What is other in embedding and output head than in the base's files.
#[derive(Debug, Clone, Default)]
pub(in crate::model) struct TableFiles {
    /// Embedding and head are one, and the file holds it under the head's name.
    head_only: bool,
    /// The names of embedding and head where they are one in the base's files and two in the model.
    parted: Option<(String, String)>,
    /// Whether they have other rows than in the base's files.
    pub(in crate::model) resized: bool,
}

impl ModelSource {
    /// Corrects the configuration by the head that the base's file holds.
    ///
    /// # Errors
    /// As [`stored_head`].
    pub(super) fn take_stored_head(&mut self, source: &dyn WeightSource) -> Result<()> {
        match stored_head(&self.config, source)? {
            StoredHead::AsConfigured => {}
            StoredHead::HeadOnly => self.tables.head_only = true,
            StoredHead::Untied => {
                if let Some((embedding, head)) = tied_pair(&self.config) {
                    self.notes.push(format!(
                        "{}: config.json says tie_word_embeddings: true, but {head} is stored with other values than {embedding}; \
                         the stored head is used, as transformers does",
                        source.path().display()
                    ));
                }
                self.config = self.config.untied()?;
            }
        }
        Ok(())
    }

    /// Takes over what adapters' files make of the tables: two of one, and other rows.
    ///
    /// # Errors
    /// As [`ModelConfig::untied`] and [`ModelConfig::with_vocab_size`].
    pub(super) fn take_stored_tables(&mut self) -> Result<()> {
        for folder in self.adapters.clone() {
            let Some((embedding, head)) = tied_pair(&self.config) else {
                break;
            };
            // A file that cannot be read is reported by the check.
            if apart(&folder, &self.config).unwrap_or(false) {
                self.notes.push(format!(
                    "{}: {embedding} and {head} are one in this model, but not with the adapter, which trained a copy of its own of one or \
                     of each (modules_to_save without ensure_weight_tying); they are two from here on",
                    folder.display()
                ));
                self.config = self.config.untied()?;
                self.tables.parted = Some((embedding, head));
            }
        }
        self.resize_as_stored()
    }

    /// The base's weights.
    ///
    /// # Errors
    /// As [`weights::open`].
    pub fn open_weights(&self) -> Result<Box<dyn WeightSource>> {
        let mut source = weights::open(&self.weights)?;
        let tied = tied_pair(&self.config).or_else(|| self.tables.parted.clone());
        if let Some((embedding, head)) = tied {
            if self.tables.head_only {
                source = named_as_well(source, &head, embedding);
            } else if self.tables.parted.is_some() {
                source = named_as_well(source, &embedding, head);
            }
        }
        Ok(match self.tables.resized {
            true => Box::new(ResizedTables::new(source, &self.config)),
            false => source,
        })
    }
}

/// A source in which the tensor `stored` is called `name`, too, unless one is.
fn named_as_well(
    inner: Box<dyn WeightSource>,
    stored: &str,
    name: String,
) -> Box<dyn WeightSource> {
    if weights::resolve(inner.as_ref(), &name).is_some() {
        return inner;
    }
    let stored = weights::resolve(inner.as_ref(), stored).unwrap_or_else(|| stored.to_owned());
    Box::new(SecondName {
        inner,
        name,
        stored,
    })
}

/// Whether embedding and head of the model, which are one, are two with the adapter in `folder`.
fn apart(folder: &Path, config: &ModelConfig) -> Result<bool> {
    let (adapter, _) = AdapterConfig::load(folder)?;
    let source = adapter_weights::open(folder, config)?;
    match adapter.task_type {
        TaskType::CausalLm => stored_apart(&adapter.spec, &config.tensors(), source.as_ref()),
        TaskType::SeqCls => Ok(false),
    }
}
