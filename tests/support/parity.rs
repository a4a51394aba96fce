//! Notes what a test compared with a reference, for `docs/parity.md` (`cargo run --release --example parity_page`).

use std::fs;
use std::path::Path;

/// What was compared, and how well it agreed.
pub(crate) struct Comparison<'a> {
    /// The reference: "transformers 5.23", "TRL 1.16", "central differences".
    pub(crate) reference: &'a str,
    /// The model, loss or file compared: "llama (tied)".
    pub(crate) subject: &'a str,
    /// The numbers compared: "log-probabilities", "gradient of every parameter".
    pub(crate) what: &'a str,
    /// Where it ran: "flex", "ndarray", "wgpu".
    pub(crate) backend: &'a str,
    /// Largest difference seen.
    pub(crate) difference: f64,
    /// Largest difference allowed.
    pub(crate) tolerance: f64,
    /// Whether both are relative to the reference's size.
    pub(crate) relative: bool,
}

impl Comparison<'_> {
    /// Notes the comparison, then fails if the difference is too large or not a number.
    pub(crate) fn check(&self) {
        let Self {
            reference,
            subject,
            what,
            backend,
            difference,
            tolerance,
            relative,
        } = *self;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity");
        fs::create_dir_all(&folder).unwrap();
        let name: String = format!("{reference} {subject} {what} {backend}")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let note = serde_json::json!({
            "reference": reference, "subject": subject, "what": what, "backend": backend,
            "difference": difference, "tolerance": tolerance, "relative": relative,
        });
        fs::write(folder.join(name + ".json"), note.to_string()).unwrap();
        assert!(
            difference <= tolerance, // false for NaN
            "{subject}, {what} on {backend}: {difference:e} from {reference}, allowed {tolerance:e}"
        );
    }
}

/// How the tables call a backend.
#[allow(dead_code, reason = "tests of text have no backend")]
pub(crate) fn backend_name<B>() -> &'static str {
    let name = std::any::type_name::<B>().to_lowercase();
    ["flex", "ndarray", "wgpu", "cuda"]
        .into_iter()
        .find(|known| name.contains(known))
        .unwrap_or("other")
}
