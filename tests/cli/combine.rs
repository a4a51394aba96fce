//! `temper export --adapters`.

use std::fs;

use serde_json::Value;

use super::{fail, succeed};

#[test]
fn adapters_become_one_and_what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let export = "export --adapters REF/peft_combined";
    for (args, parts) in [
        (
            "a,REF/peft_combined/b --weights 1 --to out",
            &["--weights: 1 for 2 adapters"] as &[&str],
        ),
        (
            "a,REF/peft_combined/b --weights 1,1e308 --to out",
            &["--weights: 1e308 does not fit a 32-bit float"],
        ),
        (
            "a,REF/peft_combined/b --weights 1,1e-320 --to out",
            &["--weights: 1e-320 does not fit a 32-bit float"],
        ),
        (
            "a,REF/peft_combined/b --combination ties --to out",
            &["--density", "--density 0.5"],
        ),
        (
            "a,REF/peft_combined/b --combination mean --to out",
            &["expected one of linear, cat, svd, ties"],
        ),
        (
            "a,REF/peft_combined/c --combination linear --to out",
            &["q_proj: the adapters' ranks 2 and 3 differ", "`cat`"],
        ),
        (
            "a,REF/peft_combined/b --combination svd --svd-rank 99 --to out",
            &["have no 99 singular values", "--svd-rank"],
        ),
        ("a,REF/peft/dora --to out", &["adapter 2: DoRA's norms"]),
        (
            "a,REF/peft/ia3 --to out",
            &["adapter 2: IA3 adapters cannot be combined"],
        ),
        ("a,REF/peft/lora_bias --to out", &["adapter 2: biases"]),
        (
            "a,REF/peft/bias_all --to out",
            &["adapter 2: trained biases"],
        ),
        (
            "a,REF/peft/vera --to out",
            &["adapter 2: VERA adapters cannot be combined"],
        ),
        (
            "a,REF/peft/pissa --to out",
            &["adapter 2: it stands on what PiSSA"],
        ),
        (
            "a,REF/peft/classifier --to out",
            &["adapter 2: it brings a score head"],
        ),
        (
            "a,REF/peft/saved_gpt_neox --to out",
            &["adapter 2: modules_to_save: \"embed_in\" is trained whole"],
        ),
        (
            "d,REF/resized/tied --to out",
            &["adapter 2: base_model.model.lm_head.weight holds other numbers than in adapter 1"],
        ),
        ("a --merge --to out", &["--merge"]),
    ] {
        fail(dir.path(), &format!("{export}/{args}"), 2, parts);
        assert!(!dir.path().join("out").exists());
    }
    let said = succeed(
        dir.path(),
        &format!(
            "{export}/a,REF/peft_combined/b --weights 0.7,-0.3 --combination ties --density 0.5 --to out"
        ),
    );
    assert!(
        said.contains("out: 2 adapters as one; its base is random-llama"),
        "{said}"
    );
    let text = fs::read_to_string(dir.path().join("out/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&2.into(), &2.into())
    );
    // What was written is an adapter like any other.
    let more = format!("{export}/a,out --weights 1,0.5 --to again");
    assert!(succeed(dir.path(), &more).contains("2 adapters as one"));
}
