//! Where a server listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::error::{Error, Result};

/// The address of a server as the user gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Bind {
    /// Address to listen on; other machines reach the server only if this is not a loopback address
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one [default: 8000 of serve, 8127 of watch; 8642 of label, or a free one if that is taken]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

impl Default for Bind {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
        }
    }
}

impl Bind {
    /// Whether only this machine can reach the server.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host.is_loopback()
    }

    /// The address with `port` if the user named none.
    pub(crate) fn or_port(self, port: u16) -> Self {
        Self {
            port: self.port.or(Some(port)),
            ..self
        }
    }

    /// What to listen on: at a free port if none is named.
    pub(crate) fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port.unwrap_or(0))
    }

    /// Checks that a server which other machines can reach asks for a secret.
    ///
    /// # Errors
    /// `Error::Usage` for an address beyond loopback without a secret; `fix` says how to give one.
    pub(crate) fn require_secret(&self, has_secret: bool, fix: &str) -> Result<()> {
        match self.is_loopback() || has_secret {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "--host {}: other machines could use this server without a secret; {fix}, or listen on 127.0.0.1 and reach it \
                 through an SSH tunnel",
                self.host
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_port_stays_and_0_is_one() {
        let named = |port| Bind {
            port,
            ..Bind::default()
        };
        for (port, expected) in [(None, 8000), (Some(0), 0), (Some(90), 90)] {
            assert_eq!(named(port).or_port(8000).socket().port(), expected);
        }
        assert_eq!(named(None).socket().port(), 0);
    }

    #[test]
    fn only_loopback_needs_no_secret() {
        let open = Bind {
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: Some(80),
        };
        assert!(Bind::default().require_secret(false, "use --key").is_ok());
        assert!(open.require_secret(true, "use --key").is_ok());
        let error = open
            .require_secret(false, "use --key")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("0.0.0.0") && error.contains("use --key"),
            "{error}"
        );
    }
}
