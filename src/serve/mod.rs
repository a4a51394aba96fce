//! `temper serve`: OpenAI's API over the generation engine, and a chat page.
//!
//! Two threads: the server's reads requests and writes answers, the engine's owns all models and computes. Requests go to the
//! engine over a bounded [`Desk`], tokens come back over channels; a channel whose client has gone ends its response.

mod api;
mod app;
mod catalog;
mod desk;
mod engine;
mod listener;
mod metrics;
mod preferences;
mod routes;
mod text;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub(crate) use self::app::RequestLimits;
use self::app::{App, now};
pub(crate) use self::catalog::{Catalog, Place, Served};
use self::desk::Desk;
pub(crate) use self::desk::PolicyPlace;
pub(crate) use self::engine::Engine;
use self::metrics::Metrics;
use self::preferences::PreferenceFile;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::report::Interrupt;
use crate::web::{Bind, Limits, Server, TokenHash};

/// A server's settings.
#[derive(Debug, Clone)]
pub(crate) struct ServeConfig {
    pub(crate) bind: Bind,
    /// The key that clients show, if they have to.
    pub(crate) key: Option<String>,
    /// Most responses and rows that wait.
    pub(crate) max_queue: usize,
    /// Largest body of a request, in bytes.
    pub(crate) max_body: usize,
    pub(crate) limits: RequestLimits,
    /// Time for requests in progress after a signal.
    pub(crate) drain: Duration,
    /// File for the preferences of the chat page.
    pub(crate) preferences: Option<PathBuf>,
    /// Of responses whose requests have no seed.
    pub(crate) seed: u64,
}

/// A server that listens and does not answer yet.
pub(crate) struct Prepared {
    server: Server,
    config: ServeConfig,
    preferences: Option<PreferenceFile>,
    stop: Interrupt,
}

impl Prepared {
    /// Listens, before any weight is loaded.
    ///
    /// # Errors
    /// If the address is taken, other machines could use the server without a key, or preferences cannot be kept.
    pub(crate) fn new(config: ServeConfig) -> Result<Self> {
        let fix = "set TEMPERING_API_KEY or give --api-key";
        config.bind.require_secret(config.key.is_some(), fix)?;
        let preferences = config.preferences.as_deref().map(PreferenceFile::open);
        let limits = Limits {
            body: config.max_body,
            // Requests are bounded by the queue; a benchmark from one address is no attack.
            rate: None,
            drain: config.drain,
            ..Limits::default()
        };
        Ok(Self {
            preferences: preferences.transpose()?,
            server: Server::bind(config.bind, limits)?.refusing_by(api::refusal),
            stop: on_signal()?,
            config,
        })
    }

    /// The address of the chat page.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Answers requests until a signal comes and all that are in progress are answered. The engine runs on this thread.
    ///
    /// # Errors
    /// When the server cannot start or the device fails.
    pub(crate) fn run<B: ModelBackend>(self, engine: Engine<B>, catalog: Catalog) -> Result<()> {
        let Self {
            server,
            config,
            preferences,
            stop,
        } = self;
        let desk = Arc::new(Desk::new(config.max_queue));
        let metrics = Arc::new(Metrics::default());
        let app = Arc::new(App {
            catalog,
            desk: desk.clone(),
            metrics: metrics.clone(),
            limits: config.limits,
            key: config.key.as_deref().map(TokenHash::of),
            preferences,
            stop: stop.clone(),
            seed: config.seed,
            requests: AtomicU64::new(0),
            started: now(),
        });
        let (ours, signal) = (desk.clone(), stop.clone());
        let web = std::thread::Builder::new()
            .name("web".into())
            .spawn(move || {
                let outcome = server.serve(routes::routes(&app), &signal);
                ours.close();
                outcome
            })
            .map_err(|e| Error::Usage(format!("the server cannot start: {e}")))?;
        let outcome = engine.run(&desk, &metrics);
        // If the device has failed the server must not wait for answers.
        stop.request();
        desk.close();
        match outcome {
            Ok(()) => web
                .join()
                .unwrap_or_else(|_| Err(Error::Backend("the server's thread has panicked".into()))),
            Err(error) => Err(error),
        }
    }
}

/// A request to end that Ctrl-C, SIGTERM and SIGHUP set; a second signal ends the process.
fn on_signal() -> Result<Interrupt> {
    let stop = Interrupt::default();
    let signalled = stop.clone();
    ctrlc::set_handler(move || {
        if signalled.request() {
            std::process::exit(crate::report::ENDED_BY_SIGINT);
        }
        eprintln!("ending after the requests in progress; a second signal quits at once");
    })
    .map_err(|e| Error::Usage(format!("cannot take over Ctrl-C: {e}")))?;
    Ok(stop)
}
