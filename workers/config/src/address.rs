//! The address of an endpoint in one form, so that two spellings of one gateway are known as one.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use corrente_crds::poller::{Endpoint, Transport};

/// The port of Modbus TCP, registered with IANA as `mbap`.
pub const MODBUS_PORT: u16 = 502;
/// The port of Modbus/TCP Security, registered with IANA as `mbap-s`.
pub const MODBUS_TLS_PORT: u16 = 802;

/// Host and port of an endpoint: the host in small letters and without the root's dot, an IP address in
/// its canonical form, and a port always. It displays as `host:port`, which is what a socket takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointAddress {
    host: String,
    port: u16,
}

/// Why a text is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is not an address: write host or host:port, such as 10.20.0.11, gateway-3:1502 or [fd00::11]:502"
)]
pub struct NotAnAddress(String);

impl EndpointAddress {
    /// The address of an endpoint in its one form, with the port of its transport where it names none.
    ///
    /// # Errors
    /// As [`Self::normalise`].
    pub fn of(endpoint: &Endpoint) -> Result<Self, NotAnAddress> {
        Self::parse(&endpoint.address, default_port(endpoint.transport))
    }

    /// Brings an address into its one form, with the port of Modbus TCP where it names none.
    ///
    /// # Errors
    /// Where the host is empty, the port is none, or an address in brackets is not IPv6.
    pub fn normalise(address: &str) -> Result<Self, NotAnAddress> {
        Self::parse(address, MODBUS_PORT)
    }

    fn parse(address: &str, default_port: u16) -> Result<Self, NotAnAddress> {
        let err = || NotAnAddress(address.to_owned());
        let (host, port) = match address.rsplit_once(':') {
            // A colon within brackets belongs to the address.
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| err())?),
            _ => (address, default_port),
        };
        if port == 0 {
            return Err(err());
        }
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(err)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| err())?;
            match ip.to_ipv4_mapped() {
                Some(v4) => v4.to_string(),
                None => format!("[{ip}]"),
            }
        } else {
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            host.parse::<Ipv4Addr>().map_or(host, |ip| ip.to_string())
        };
        if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
            return Err(err());
        }
        Ok(Self { host, port })
    }

    /// The host, an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for EndpointAddress {
    type Err = NotAnAddress;

    fn from_str(address: &str) -> Result<Self, NotAnAddress> {
        Self::normalise(address)
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The port of a transport where an address names none.
#[must_use]
pub fn default_port(transport: Transport) -> u16 {
    match transport {
        Transport::Tcp | Transport::RtuOverTcp => MODBUS_PORT,
        Transport::Tls => MODBUS_TLS_PORT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gateway_has_one_form() {
        for (written, form) in [
            ("10.20.0.11", "10.20.0.11:502"),
            ("10.20.0.11:502", "10.20.0.11:502"),
            ("Gateway-3.Site", "gateway-3.site:502"),
            ("gateway-3.site.:1502", "gateway-3.site:1502"),
            ("[FD00:0::0011]", "[fd00::11]:502"),
            ("[fd00::11]:1502", "[fd00::11]:1502"),
            ("[::ffff:10.20.0.11]", "10.20.0.11:502"),
        ] {
            let address = EndpointAddress::normalise(written).unwrap();
            assert_eq!(address.to_string(), form, "{written}");
            assert_eq!(form.parse(), Ok(address));
        }
    }

    #[test]
    fn a_transport_has_its_port() {
        for (transport, written, form) in [
            (Transport::Tcp, "gw", "gw:502"),
            (Transport::RtuOverTcp, "gw", "gw:502"),
            (Transport::Tls, "gw", "gw:802"),
            (Transport::Tls, "[fd00::11]", "[fd00::11]:802"),
            (Transport::Tls, "gw:502", "gw:502"),
        ] {
            let endpoint = Endpoint {
                address: written.to_owned(),
                transport,
                ..Endpoint::default()
            };
            assert_eq!(EndpointAddress::of(&endpoint).unwrap().to_string(), form);
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for written in [
            "",
            ":502",
            "host:",
            "host:0",
            "host:65536",
            "fd00::11",
            "[host]",
            "[::1",
            ".",
        ] {
            let error = EndpointAddress::normalise(written).unwrap_err().to_string();
            assert!(error.contains("write host or host:port"), "{written}: {error}");
        }
    }
}
