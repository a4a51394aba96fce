//! Whole stages and pipelines on CPU backends: details, options, invariants, failures, exact resume.

mod adapters;
mod ai_feedback;
mod compare;
mod distill;
mod dpo;
mod failures;
mod group;
mod hir;
mod invariants;
mod judge;
mod label;
mod methods;
mod online_dpo;
mod only;
mod optimisers_in_recipes;
mod options;
mod ppo_details;
mod preferences;
mod resume;
mod revise;
mod rewards;
mod rollout;
mod rounds;
mod saved;
mod tokens;
mod trackers;
