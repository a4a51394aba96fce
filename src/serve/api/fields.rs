//! Fields of a request: each is read, refused, or said to be unknown.

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::suggest::did_you_mean;

/// The fields of a request's body that were not read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::malformed(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(left) => Ok(Self {
                left,
                known: Vec::new(),
            }),
            _ => Err(ApiError::malformed("the body is not a JSON object")),
        }
    }

    /// The value of a field; `None` if it is missing or null.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left
            .shift_remove(name)
            .filter(|value| !value.is_null())
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a text", &other)),
        }
    }

    /// True or false; false if it is missing.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self.switch(name)?.unwrap_or(false))
    }

    /// True or false.
    pub(crate) fn switch(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(expected(name, "true or false", &other)),
        }
    }

    /// A number from `low` to `high`.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        low: f64,
        high: f64,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|x| (low..=high).contains(x)) {
            Some(number) => Ok(Some(number)),
            None if high.is_finite() => Err(expected(
                name,
                &format!("a number from {low} to {high}"),
                &value,
            )),
            None => Err(expected(
                name,
                &format!("a number of at least {low}"),
                &value,
            )),
        }
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn count(
        &mut self,
        name: &'static str,
        low: usize,
        high: usize,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match number.filter(|n| (low..=high).contains(n)) {
            Some(number) => Ok(Some(number)),
            None if high == usize::MAX => Err(expected(
                name,
                &format!("a whole number of at least {low}"),
                &value,
            )),
            None => Err(expected(
                name,
                &format!("a whole number from {low} to {high}"),
                &value,
            )),
        }
    }

    /// A list or an object.
    pub(crate) fn object(&mut self, name: &'static str) -> Result<Map<String, Value>, ApiError> {
        match self.take(name) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(other) => Err(expected(name, "an object", &other)),
        }
    }

    /// A field that cannot change the answer, such as the name of the client's user.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.take(name);
        }
    }

    /// A field of OpenAI's API that is not supported: only `neutral` values, which ask for nothing, are taken.
    pub(crate) fn unsupported(
        &mut self,
        name: &'static str,
        neutral: &[Value],
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !neutral.contains(&value) => {
                let allowed = match neutral {
                    [] => String::new(),
                    neutral => {
                        let texts: Vec<String> = neutral.iter().map(Value::to_string).collect();
                        format!("; only {} is taken", texts.join(" or "))
                    }
                };
                Err(ApiError::invalid(
                    name,
                    format!("`{name}` is not supported by this server{allowed}"),
                )
                .with_code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// For a field that nothing has asked for.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => {
                let help = did_you_mean(name, self.known.iter().copied());
                let help = help.map_or(String::new(), |help| format!("; {help}"));
                Err(ApiError::malformed(format!("unknown field `{name}`{help}"))
                    .with_param(name.clone())
                    .with_code("unknown_parameter"))
            }
        }
    }
}

/// The error for a value of another type or out of range.
pub(crate) fn expected(name: &'static str, what: &str, found: &Value) -> ApiError {
    let mut text = found.to_string();
    if text.len() > 80 {
        let end = text.floor_char_boundary(80);
        text.truncate(end);
        text.push_str("..");
    }
    ApiError::invalid(name, format!("`{name}`: expected {what}, found {text}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    fn message(error: &ApiError) -> String {
        error.body()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn what_nobody_read_is_unknown() {
        let mut body = fields(&json!({"temperature": 1, "temperatur": 2, "n": null}));
        assert_eq!(body.number("temperature", 0.0, 2.0).unwrap(), Some(1.0));
        assert_eq!(body.count("n", 1, 8).unwrap(), None);
        let error = body.finish().unwrap_err();
        assert_eq!(
            message(&error),
            "unknown field `temperatur`; did you mean `temperature`?"
        );
        assert_eq!(error.body()["error"]["param"], "temperatur");
    }

    #[test]
    fn wrong_values_are_named() {
        let mut body = fields(&json!({"n": 9, "top_p": "x", "stream": 1, "model": []}));
        assert_eq!(
            message(&body.count("n", 1, 8).unwrap_err()),
            "`n`: expected a whole number from 1 to 8, found 9"
        );
        assert_eq!(
            message(&body.number("top_p", 0.0, 1.0).unwrap_err()),
            "`top_p`: expected a number from 0 to 1, found \"x\""
        );
        assert!(message(&body.flag("stream").unwrap_err()).contains("true or false"));
        assert!(message(&body.text("model").unwrap_err()).contains("a text"));
        assert!(Fields::parse(b"[]").is_err() && Fields::parse(b"{").is_err());
    }

    #[test]
    fn unsupported_fields_may_ask_for_nothing() {
        let mut body = fields(&json!({"best_of": 1, "suffix": "x", "user": "me"}));
        assert!(body.unsupported("best_of", &[json!(1)]).is_ok());
        let error = body.unsupported("suffix", &[json!("")]).unwrap_err();
        assert_eq!(
            message(&error),
            "`suffix` is not supported by this server; only \"\" is taken"
        );
        body.ignore(&["user"]);
        assert!(body.finish().is_ok());
    }
}
