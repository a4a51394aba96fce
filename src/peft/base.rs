//! The base model that an adapter's configuration names: `base_model_name_or_path` and `revision`, here one text.

use serde_json::{Map, Value};

use crate::hub::{MAIN, Repo};

/// The base that a configuration names: a path, or a repository of the hub, `owner/name` or `owner/name@revision`.
pub(crate) fn read_base(config: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| {
        let value = config.get(key).and_then(Value::as_str);
        value.filter(|text| !text.is_empty())
    };
    let base = text("base_model_name_or_path")?;
    Some(match text("revision") {
        Some(revision) if revision != MAIN && Repo::is_id(base) => format!("{base}@{revision}"),
        _ => base.to_owned(),
    })
}

/// Sets the base of a configuration.
pub(crate) fn write_base(config: &mut Map<String, Value>, base: Option<&str>) {
    let split = base.and_then(|base| base.split_once('@'));
    let (base, revision) = match split.filter(|(id, _)| Repo::is_id(id)) {
        Some((id, revision)) => (Some(id), Some(revision)),
        None => (base, None),
    };
    config.insert("base_model_name_or_path".into(), base.into());
    // Formats other than PEFT's have no such key.
    if revision.is_some() || config.contains_key("revision") {
        config.insert("revision".into(), revision.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_revision_is_part_of_the_base() {
        for (base, path, revision) in [
            (Some("me/m@v1"), json!("me/m"), json!("v1")),
            (Some("me/m"), json!("me/m"), Value::Null),
            (Some("/home/a@b/m"), json!("/home/a@b/m"), Value::Null),
            (None, Value::Null, Value::Null),
        ] {
            let mut config = Map::from_iter([("revision".to_owned(), json!("old"))]);
            write_base(&mut config, base);
            assert_eq!(config["base_model_name_or_path"], path);
            assert_eq!(config["revision"], revision);
            assert_eq!(read_base(&config).as_deref(), base);
        }
    }
}
