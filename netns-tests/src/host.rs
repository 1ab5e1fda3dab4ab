//! One host: a namespace with a loopback device, an underlay address of each family, and whatever is
//! started in it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;

/// The name of a host's underlay device.
pub const UNDERLAY: &str = "eth0";

/// How long a probe waits for an answer that ought to come.
pub const ANSWER: Duration = Duration::from_secs(15);

/// How long a probe waits before it calls silence silence. Long enough for a handshake and its retries.
pub const SILENCE: Duration = Duration::from_secs(3);

/// A request that begins with this is echoed, and the connection stays open for more.
pub const KEEP_OPEN: &[u8] = b"keep open";

/// A host of the lab.
#[derive(Debug)]
pub struct Host {
    /// What the topology calls it.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its underlay addresses (documentation prefixes, RFC 5737 and RFC 3849).
    pub v4: Ipv4Addr,
    /// As above.
    pub v6: Ipv6Addr,
    /// Its own directory, for state, logs and sockets.
    pub directory: PathBuf,
}

/// What became of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Connected,
    /// A RST, or an ICMP error that ends the attempt at once.
    Refused,
    /// ICMP administratively prohibited, or no route.
    Unreachable,
    /// Nothing came back.
    Silence,
}

/// A netlink handle for the calling thread's namespace.
pub async fn netlink() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The index of the device called `name` in the calling thread's namespace.
pub async fn device(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.with_context(|| format!("look up device {name}"))?;
    Ok(link.with_context(|| format!("no device {name}"))?.header.index)
}

/// Addresses of an underlay device, and the way to everywhere else.
async fn add_underlay(handle: &Handle, underlay: u32, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    handle.address().add(underlay, IpAddr::V4(v4), 24).execute().await?;
    let mut address = handle.address().add(underlay, IpAddr::V6(v6), 64);
    // Without duplicate address detection the address is usable at once.
    address.message_mut().header.flags = netlink_packet_route::address::AddressHeaderFlags::Nodad;
    address.execute().await?;
    // Whatever has no better route leaves by the wire: what a leak would look like. One of them may have outlived the address
    // before.
    let v4_route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(Ipv4Addr::new(198, 51, 100, 254)).build();
    handle.route().add(v4_route).replace().execute().await?;
    let v6_gateway = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
    let v6_route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(v6_gateway).build();
    handle.route().add(v6_route).replace().execute().await?;
    Ok(())
}

impl Host {
    /// Brings up loopback and the underlay device that the lab has moved in.
    pub(crate) fn configure(&self) -> Result<()> {
        let (v4, v6) = (self.v4, self.v6);
        self.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let loopback = device(&handle, "lo").await?;
            handle.link().change(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
            let underlay = device(&handle, UNDERLAY).await?;
            handle.link().change(LinkUnspec::new_with_index(underlay).up().build()).execute().await?;
            add_underlay(&handle, underlay, v4, v6).await
        })
    }

    /// Its IPv4 underlay address with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// Gives the host other underlay addresses, as when it changes its network: the old ones are gone before the new ones are
    /// there.
    pub fn move_to(&mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        let old = [IpAddr::V4(self.v4), IpAddr::V6(self.v6)];
        self.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let underlay = device(&handle, UNDERLAY).await?;
            for old in old {
                let mut found =
                    handle.address().get().set_link_index_filter(underlay).set_address_filter(old).execute();
                let address =
                    found.try_next().await.context("look up an address")?.with_context(|| format!("no {old}"))?;
                handle.address().del(address).execute().await.with_context(|| format!("delete {old}"))?;
            }
            add_underlay(&handle, underlay, v4, v6).await
        })?;
        (self.v4, self.v6) = (v4, v6);
        Ok(())
    }

    /// Removes one of its devices.
    pub fn delete_device(&self, name: &str) -> Result<()> {
        self.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let index = device(&handle, name).await?;
            handle.link().del(index).execute().await.with_context(|| format!("delete {name}"))
        })
    }

    /// Sends packets for `destination` to a neighbour on the wire.
    pub fn route(&self, destination: IpAddr, neighbour: IpAddr) -> Result<()> {
        self.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let request = match (destination, neighbour) {
                (IpAddr::V4(destination), IpAddr::V4(neighbour)) => handle.route().add(
                    RouteMessageBuilder::<Ipv4Addr>::new()
                        .destination_prefix(destination, 32)
                        .gateway(neighbour)
                        .build(),
                ),
                (IpAddr::V6(destination), IpAddr::V6(neighbour)) => handle.route().add(
                    RouteMessageBuilder::<Ipv6Addr>::new()
                        .destination_prefix(destination, 128)
                        .gateway(neighbour)
                        .build(),
                ),
                _ => anyhow::bail!("{destination} and {neighbour} are of different families"),
            };
            request.execute().await.with_context(|| format!("route {destination} to {neighbour}"))
        })
    }

    /// Sends one datagram from an address that is not this host's, as a program with CAP_NET_RAW can.
    pub fn udp_from(&self, source: Ipv6Addr, to: SocketAddr, payload: &[u8]) -> Result<()> {
        self.namespace.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            socket.set_freebind_v6(true)?;
            socket.bind(&SocketAddr::from((source, 0)).into()).with_context(|| format!("bind {source}"))?;
            socket.send_to(payload, &to.into()).with_context(|| format!("send to {to}"))?;
            Ok(())
        })
    }

    /// A TCP service that answers each connection with `answer` and then closes, or echoes for as long as it lasts
    /// where the request is [`KEEP_OPEN`]. It runs until the process ends.
    pub fn serve_tcp(&self, address: SocketAddr, answer: &'static [u8]) -> Result<()> {
        let listener = self.namespace.run(|| TcpListener::bind(address).with_context(|| format!("bind {address}")))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve_one(stream, answer));
            }
        });
        Ok(())
    }

    /// A UDP service that sends back what it gets, until the process ends.
    pub fn serve_udp(&self, address: SocketAddr) -> Result<()> {
        let socket = self.namespace.run(|| UdpSocket::bind(address).with_context(|| format!("bind {address}")))?;
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        Ok(())
    }

    /// Sends `request` to a TCP address and reads to the end.
    pub fn tcp(&self, to: SocketAddr, request: &[u8], wait: Duration) -> Result<(Outcome, Vec<u8>)> {
        self.namespace.run(|| {
            let mut stream = match TcpStream::connect_timeout(&to, wait) {
                Ok(stream) => stream,
                Err(error) => return Ok((outcome(&error), Vec::new())),
            };
            stream.set_read_timeout(Some(wait))?;
            let mut answer = Vec::new();
            let talked = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
            match talked {
                Ok(_) => Ok((Outcome::Connected, answer)),
                Err(error) => Ok((outcome(&error), answer)),
            }
        })
    }

    /// A connected TCP stream, for tests that keep a flow alive.
    pub fn connect(&self, to: SocketAddr, wait: Duration) -> Result<TcpStream> {
        self.namespace.run(|| {
            let stream = TcpStream::connect_timeout(&to, wait).with_context(|| format!("connect to {to}"))?;
            stream.set_read_timeout(Some(wait))?;
            Ok(stream)
        })
    }

    /// Sends one datagram from a fresh socket and waits for one back.
    pub fn udp(&self, to: SocketAddr, payload: &[u8], wait: Duration) -> Result<(Outcome, Vec<u8>)> {
        self.namespace.run(|| {
            let any: SocketAddr =
                if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(wait))?;
            if let Err(error) = socket.connect(to) {
                return Ok((outcome(&error), Vec::new()));
            }
            if let Err(error) = socket.send(payload) {
                return Ok((outcome(&error), Vec::new()));
            }
            let mut buffer = vec![0; 2048];
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    Ok((Outcome::Connected, buffer))
                }
                Err(error) => Ok((outcome(&error), Vec::new())),
            }
        })
    }
}

fn serve_one(mut stream: TcpStream, answer: &[u8]) {
    let mut request = [0; 2048];
    let mut keep = false;
    while let Ok(length @ 1..) = stream.read(&mut request) {
        keep |= request[..length].starts_with(KEEP_OPEN);
        let reply = if keep { &request[..length] } else { answer };
        if stream.write_all(reply).is_err() || !keep {
            return;
        }
    }
}

fn outcome(error: &std::io::Error) -> Outcome {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Outcome::Unreachable
        }
        _ => Outcome::Silence,
    }
}
