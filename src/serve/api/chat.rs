//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer::Kind;
use super::completions::MAX_TOP;
use super::error::ApiError;
use super::fields::{Fields, expected};
use super::request::{PromptIds, Request, check_bytes};
use super::settings::Settings;
use super::{elsewhere, respond};
use crate::data::ChatOptions;
use crate::serve::app::App;
use crate::serve::catalog::Served;

/// Answers the last message of a conversation.
///
/// # Errors
/// Of the request's fields; as [`respond`].
pub(crate) async fn chat(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let theirs = app.clone();
    let request = elsewhere(move || read(&theirs, &body)).await?;
    respond(app, request, Kind::Chat).await
}

fn read(app: &App, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (served, place) = app.policy(fields.text("model")?.as_deref())?;
    let messages = messages(fields.take("messages"))?;
    let options = options(&mut fields, &served)?;
    let old_name = fields.count("max_tokens", 1, usize::MAX)?;
    let max_tokens = fields
        .count("max_completion_tokens", 1, usize::MAX)?
        .or(old_name);
    let num_top = num_top(&mut fields)?;
    let settings = Settings::take(&mut fields, served.vocab_size)?;
    unsupported(&mut fields)?;
    fields.finish()?;
    let prompt = render(&served, &messages, &options)?;
    // As much as there is room for, up to the server's own limit.
    let room = served.max_length.saturating_sub(prompt.ids.len()).max(1);
    let max_tokens = max_tokens.unwrap_or(app.limits.max_new_tokens.min(room));
    let request = Request {
        served,
        place,
        prompts: vec![prompt],
        settings,
        max_tokens,
        num_top,
        echo: false,
        number: app.number(),
    };
    request.check("messages")?;
    Ok(request)
}

/// `logprobs`, a switch, and `top_logprobs`, a number that needs it.
fn num_top(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0, MAX_TOP)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` needs `logprobs: true`",
        )),
    }
}

/// Fields of OpenAI's API that would change the answer and are not supported.
fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let text_format = json!({"type": "text"});
    fields.unsupported("response_format", &[text_format])?;
    fields.unsupported("parallel_tool_calls", &[json!(true)])?;
    fields.unsupported("modalities", &[json!(["text"])])?;
    fields.unsupported("store", &[json!(false)])?;
    for name in [
        "functions",
        "function_call",
        "audio",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
    ] {
        fields.unsupported(name, &[])?;
    }
    Ok(())
}

/// Inputs of the template beside the messages.
fn options(fields: &mut Fields, served: &Served) -> Result<ChatOptions, ApiError> {
    let template = served.tokenizer.chat().map_err(|_| {
        ApiError::invalid(
            "model",
            format!(
                "model `{}` has no chat template, so that it cannot tell who speaks; /v1/completions continues text",
                served.name
            ),
        )
    })?;
    let tools = match fields.take("tools") {
        None => None,
        Some(Value::Array(tools)) if tools.is_empty() => None,
        Some(tools @ Value::Array(_)) if template.reads_tools() => Some(tools),
        Some(Value::Array(_)) => {
            return Err(ApiError::invalid(
                "tools",
                format!(
                    "`tools`: the chat template of model `{}` does not read them",
                    served.name
                ),
            )
            .with_code("unsupported_parameter"));
        }
        Some(other) => return Err(expected("tools", "a list", &other)),
    };
    let tools = match fields.take("tool_choice") {
        None => tools,
        Some(choice) if choice == json!("auto") => tools,
        Some(choice) if choice == json!("none") => None,
        Some(other) => {
            return Err(expected(
                "tool_choice",
                "\"auto\" or \"none\" (calls are not enforced)",
                &other,
            ));
        }
    };
    let continue_final_message = fields.flag("continue_final_message")?;
    let opens = fields.switch("add_generation_prompt")?;
    Ok(ChatOptions {
        tools,
        add_generation_prompt: opens.unwrap_or(!continue_final_message),
        continue_final_message,
        variables: fields.object("chat_template_kwargs")?,
    })
}

/// The messages in the form that templates read: content as a text, arguments of tool calls as objects.
fn messages(value: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let list = match value {
        Some(Value::Array(list)) if !list.is_empty() => list,
        other => {
            return Err(expected(
                "messages",
                "a list of messages, each with `role` and `content`",
                &other.unwrap_or_default(),
            ));
        }
    };
    let message = |(at, message): (usize, Value)| match message {
        Value::Object(message) => self::message(at, message),
        other => Err(expected("messages", "objects", &other)),
    };
    list.into_iter().enumerate().map(message).collect()
}

fn message(at: usize, mut message: Map<String, Value>) -> Result<Value, ApiError> {
    let wrong = |what: &str| {
        ApiError::invalid("messages", format!("`messages[{at}]`: {what}"))
            .with_param(format!("messages[{at}]"))
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong("expected `role`, a text"));
    }
    let calls_tools = message.get("tool_calls").is_some_and(Value::is_array);
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Null) | None if calls_tools => {}
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| {
                let is_text = part.get("type").and_then(Value::as_str) == Some("text");
                part.get("text").and_then(Value::as_str).filter(|_| is_text)
            });
            let texts = texts.collect::<Option<Vec<&str>>>();
            let texts = texts.ok_or_else(|| wrong("only parts of type `text` are supported"))?;
            let text = texts.join("\n");
            message.insert("content".into(), text.into());
        }
        _ => return Err(wrong("expected `content`, a text or parts of type `text`")),
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for call in calls {
            let arguments = call.pointer_mut("/function/arguments");
            // OpenAI's API has them as JSON in a text, templates read an object.
            if let Some(arguments) = arguments
                && let Some(text) = arguments.as_str()
            {
                let parsed = serde_json::from_str(text);
                *arguments = parsed.map_err(|e| {
                    wrong(&format!(
                        "`function.arguments` of a tool call is not JSON: {e}"
                    ))
                })?;
            }
        }
    }
    Ok(Value::Object(message))
}

fn render(
    served: &Served,
    messages: &[Value],
    options: &ChatOptions,
) -> Result<PromptIds, ApiError> {
    let bytes = messages
        .iter()
        .map(|message| message.to_string().len())
        .sum();
    check_bytes(bytes, served.max_length, "messages")?;
    let refused = |error| ApiError::from(error).with_param("messages");
    let chat = served.tokenizer.chat().map_err(refused)?;
    let text = chat.render(messages, options).map_err(refused)?;
    check_bytes(text.len(), served.max_length, "messages")?;
    // The template has written the special tokens.
    let ids = served.tokenizer.encode(&text, false).map_err(refused)?;
    served.tokenizer.check_bos(&ids).map_err(refused)?;
    Ok(PromptIds {
        ids: ids.into(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Value>, String> {
        messages(Some(value)).map_err(|e| e.body()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn messages_are_what_templates_read() {
        let found = read(json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"}
        ]))
        .unwrap();
        assert_eq!(found[0]["content"], "a\nb");
        assert_eq!(found[1]["tool_calls"][0]["function"]["arguments"]["x"], 1);
        for (value, says) in [
            (json!([]), "expected a list of messages"),
            (json!([{"content": "a"}]), "`messages[0]`: expected `role`"),
            (
                json!([{"role": "user"}]),
                "`messages[0]`: expected `content`",
            ),
            (
                json!([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "image_url"}]}]),
                "`messages[1]`: only parts of type `text`",
            ),
            (
                json!([{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{"}}]}]),
                "is not JSON",
            ),
        ] {
            let message = read(value).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
