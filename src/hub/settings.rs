//! Where the hub and its cache are, and who asks: the environment variables of Python's `huggingface_hub`.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::outside;

/// Where the hub and its cache are, and who asks. `Debug` shows no password of the address.
#[derive(Clone)]
pub struct HubSettings {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// The user's token.
    pub token: Option<Token>,
    /// Whether requests are forbidden.
    pub offline: bool,
    /// Whether progress is shown on stderr.
    pub progress: bool,
    /// Wait before the first repetition of a request; doubled for each further one.
    pub retry_wait: Duration,
}

/// A user access token. Its text is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) text: String,
    /// Where it was found, for messages.
    pub(super) origin: String,
}

impl Token {
    /// A token; `origin`: where it was found. `None` for an empty text.
    pub fn new(text: &str, origin: impl Into<String>) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        (!text.is_empty()).then(|| Self {
            text,
            origin: origin.into(),
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.origin)
    }
}

impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("HubSettings");
        all.field("endpoint", &shown(&self.endpoint));
        all.field("cache", &self.cache).field("token", &self.token);
        all.field("offline", &self.offline).finish_non_exhaustive()
    }
}

impl HubSettings {
    /// The settings of the environment.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `HF_ENDPOINT` | address of the hub or of a mirror; `https://huggingface.co` |
    /// | `HF_HUB_CACHE` | the cache; `$HF_HOME/hub` |
    /// | `HF_HOME` | cache and token; `$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
    /// | `HF_TOKEN` | the token; the one that `hf auth login` stored in `HF_TOKEN_PATH`, `$HF_HOME/token` |
    /// | `HF_HUB_OFFLINE` | `1` forbids requests |
    /// | `HF_HUB_DISABLE_PROGRESS_BARS` | `1` hides progress |
    pub fn from_env() -> Self {
        Self::of(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The settings that `variable` gives.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let user = variable("HOME").or_else(|| variable("USERPROFILE"));
        let expand = |path: String| match (path.strip_prefix("~/"), &user) {
            (Some(below), Some(user)) => Path::new(user).join(below),
            _ => PathBuf::from(path),
        };
        let is_true = |name: &str| {
            let value = variable(name).map(|value| value.to_uppercase());
            matches!(value.as_deref(), Some("1" | "ON" | "YES" | "TRUE"))
        };
        let home = variable("HF_HOME").map(expand).unwrap_or_else(|| {
            let caches = variable("XDG_CACHE_HOME").map(expand);
            let caches = caches.or_else(|| Some(Path::new(user.as_deref()?).join(".cache")));
            caches.unwrap_or_else(env::temp_dir).join("huggingface")
        });
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), expand);
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(|name| Token::new(&variable(name)?, name))
            .or_else(|| {
                let text = outside::read_text(&token_file, outside::SETTINGS).ok()?;
                Token::new(&text, token_file.display().to_string())
            });
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.map_or_else(|| home.join("hub"), expand),
            token: token.filter(|_| !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            progress: !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
            retry_wait: Duration::from_secs(1),
        }
    }
}

/// An address without the user and password that it may hold, for messages.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> HubSettings {
        HubSettings::of(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_python_are_read() {
        let settings = of(&[("HOME", "/home/a")]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!(settings.cache, Path::new("/home/a/.cache/huggingface/hub"));
        assert!(settings.token.is_none() && !settings.offline);
        let settings = of(&[
            ("HOME", "/home/a"),
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_OFFLINE", "True"),
        ]);
        assert_eq!(settings.endpoint, "http://mirror");
        assert_eq!(settings.cache, Path::new("/home/a/hf/hub"));
        assert_eq!(settings.token, Token::new("hf_secret", "HF_TOKEN"));
        assert!(settings.offline);
        assert!(!format!("{settings:?}").contains("secret"));
        let settings = of(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/big/hub")]);
        assert_eq!(settings.cache, Path::new("/big/hub"));
    }

    #[test]
    fn passwords_of_addresses_are_not_shown() {
        assert_eq!(
            shown("https://me:pw@mirror:8/a@b?c"),
            "https://mirror:8/a@b?c"
        );
        assert_eq!(shown("https://me:p@w@mirror"), "https://mirror");
        assert_eq!(shown("https://mirror/a@b"), "https://mirror/a@b");
        let settings = of(&[("HF_ENDPOINT", "https://me:pw@mirror/")]);
        assert!(!format!("{settings:?}").contains("pw"), "{settings:?}");
    }

    #[test]
    fn the_stored_token_is_read_where_the_environment_has_none() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("token"), "hf_stored\n").unwrap();
        let home = root.path().to_str().unwrap();
        let token = of(&[("HF_HOME", home)]).token.unwrap();
        assert_eq!(token.text, "hf_stored");
        assert!(token.origin.ends_with("token"));
        let token = of(&[("HF_HOME", home), ("HF_TOKEN", "hf_given")]).token;
        assert_eq!(token.unwrap().text, "hf_given");
        let none = of(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
    }
}
