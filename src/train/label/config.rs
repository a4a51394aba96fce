//! The configuration of a Label stage.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::label::Form;
use crate::train::config::{DataConfig, tenth};

/// Comparisons of responses by people: serves a page, waits until enough is judged, and writes the rows of a reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Responses to each prompt, as stages write them, or preference rows.
    pub data: DataConfig,
    /// Who judges.
    #[serde(default)]
    pub by: Labeller,
    /// What people are asked.
    #[serde(default)]
    pub form: Form,
    /// Names of the annotators, each of whom gets an address.
    #[serde(default = "one_annotator")]
    pub annotators: Vec<String>,
    /// Fraction of tasks that all annotators judge; the other tasks are judged by one.
    #[serde(default)]
    pub overlap: f64,
    /// Most pairs of a prompt's responses, drawn at random from all.
    #[serde(default)]
    pub max_pairs: Option<usize>,
    /// Judged tasks after which the run goes on; without it, all.
    #[serde(default)]
    pub enough: Option<usize>,
    /// Address to listen on.
    #[serde(default = "loopback")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[serde(default)]
    pub port: u16,
    /// Fraction of prompts whose comparisons are held out (`<stage>/valid.jsonl`).
    #[serde(default = "tenth")]
    pub valid_fraction: f64,
}

/// Who judges in a Label stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Labeller {
    /// People in their browsers.
    #[default]
    People,
    /// The scores that the rows have, e.g. of a gold reward: what people would say if they agreed with it.
    Scores,
}

pub(super) fn one_annotator() -> Vec<String> {
    vec!["annotator".into()]
}

pub(super) fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}
