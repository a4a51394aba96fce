//! Adapters that PEFT wrote, on every CPU backend.

#[path = "support/parity.rs"]
mod parity;
#[path = "support/peft.rs"]
mod peft;

macro_rules! on_backends {
    ($($check:ident),* $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $check() { crate::peft::$check::<burn::backend::Flex>(Default::default()); })*
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $check() { crate::peft::$check::<burn::backend::NdArray>(Default::default()); })*
        }
    };
}

on_backends!(adapters, classifiers, written, misfits);

/// Configurations that PEFT wrote for what is not low-rank products on linear layers alone.
#[test]
fn what_changes_the_numbers_is_refused() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/reference/peft/refused.json"
    );
    let refused: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for (key, config) in refused.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = tempering::peft::AdapterConfig::load(dir.path()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(key.as_str()), "{key}: {error}");
    }
}
