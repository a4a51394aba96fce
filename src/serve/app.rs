//! What all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::api::ApiError;
use super::catalog::{Catalog, Served};
use super::desk::{Desk, PolicyPlace};
use super::metrics::Metrics;
use super::preferences::PreferenceFile;
use crate::report::Interrupt;
use crate::rng::Seed;
use crate::web::TokenHash;

/// What requests may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLimits {
    /// Most new tokens of a chat's response, unless the request says otherwise.
    pub(crate) max_new_tokens: usize,
    /// Time of a request, from its coming to its end.
    pub(crate) time: Duration,
}

/// What all handlers share.
pub(crate) struct App {
    pub(crate) catalog: Catalog,
    pub(crate) desk: Arc<Desk>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: RequestLimits,
    /// Requests without a secret are refused if there is one.
    pub(crate) key: Option<TokenHash>,
    /// Where preferences of the chat page go.
    pub(crate) preferences: Option<PreferenceFile>,
    /// Set when the server is to end.
    pub(crate) stop: Interrupt,
    /// Of responses whose requests have no seed.
    pub(crate) seed: u64,
    /// Requests so far.
    pub(crate) requests: AtomicU64,
    /// Seconds since 1970.
    pub(crate) started: u64,
}

impl App {
    /// The number of a new request.
    pub(crate) fn number(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// The stream of choice `index` of request `number`. With a seed it is that of `temper generate --seed`.
    pub(crate) fn seed(&self, asked: Option<u64>, number: u64, index: usize) -> Seed {
        let root = match asked {
            Some(seed) => Seed::new(seed).fork("generate"),
            None => Seed::new(self.seed).fork("serve").fork_index(number),
        };
        root.fork_index(index as u64)
    }

    /// The model that a request names.
    ///
    /// # Errors
    /// 404 for an unknown name, 400 without one.
    pub(crate) fn model(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let Some(name) = name else {
            return Err(ApiError::invalid(
                "model",
                "`model`: expected the name of a model; /v1/models lists them",
            ));
        };
        self.catalog.find(name).map_err(|message| {
            ApiError::with_status(StatusCode::NOT_FOUND, "model_not_found", message)
                .with_param("model")
        })
    }

    /// The policy that a request names.
    ///
    /// # Errors
    /// As [`App::model`]; 400 for a reward model.
    pub(crate) fn policy(
        &self,
        name: Option<&str>,
    ) -> Result<(Arc<Served>, PolicyPlace), ApiError> {
        let model = self.model(name)?;
        match model.policy() {
            Some(place) => Ok((model, place)),
            None => Err(ApiError::invalid(
                "model",
                format!(
                    "model `{}` is a reward model, which generates nothing; /v1/score asks it",
                    model.name
                ),
            )),
        }
    }

    /// A model as `/v1/models` lists it.
    pub(crate) fn describe(&self, model: &Served) -> Value {
        json!({
            "id": model.name,
            "object": "model",
            "created": self.started,
            "owned_by": "temper",
            "root": model.root,
            "max_model_len": model.max_length,
            "kind": match model.policy() {
                Some(_) => "policy",
                None => "reward",
            },
            "has_chat_template": model.policy().is_some() && model.tokenizer.has_chat(),
        })
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
