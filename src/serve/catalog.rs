//! The models that are served, by name.

use std::sync::Arc;

use crate::data::Tokenizer;
use crate::serve::desk::PolicyPlace;
use crate::suggest::{did_you_mean, quoted};

/// Where a model is in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A policy.
    Policy(PolicyPlace),
    /// A reward model, by its number.
    Reward(usize),
}

/// A model that is served.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// Its name in requests.
    pub(crate) name: String,
    pub(crate) place: Place,
    /// The model that it is an adapter of, or itself.
    pub(crate) root: String,
    pub(crate) tokenizer: Tokenizer,
    /// Most tokens of a prompt with its response.
    pub(crate) max_length: usize,
    /// Size of its vocabulary.
    pub(crate) vocab_size: usize,
}

impl Served {
    /// Where it is, if it is a policy.
    pub(crate) fn policy(&self) -> Option<PolicyPlace> {
        match self.place {
            Place::Policy(place) => Some(place),
            Place::Reward(_) => None,
        }
    }
}

/// All models that are served.
#[derive(Debug)]
pub(crate) struct Catalog {
    models: Vec<Arc<Served>>,
}

impl Catalog {
    pub(crate) fn new(models: Vec<Served>) -> Self {
        Self {
            models: models.into_iter().map(Arc::new).collect(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.models.iter()
    }

    /// The model of this name.
    ///
    /// # Errors
    /// A text that names the models that there are.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Served>, String> {
        match self.models.iter().find(|model| model.name == name) {
            Some(model) => Ok(model.clone()),
            None => {
                let names = || self.models.iter().map(|model| model.name.as_str());
                let help = did_you_mean(name, names())
                    .unwrap_or_else(|| format!("this server has {}", quoted(names())));
                Err(format!("there is no model `{name}`; {help}"))
            }
        }
    }
}
