//! TCP connections between ports of one's choice, of which both ends are at hand.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use netpol_testbed::place::Place;
use socket2::{Domain, SockAddr, Socket, Type};

/// In which whatever is delivered is answered, a SYN that had to be sent again as well.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2500);

/// A TCP socket on an address and port that something else may have had just now.
fn bound(place: &Place, address: IpAddr, port: u16) -> Socket {
    let address = SocketAddr::new(address, port);
    let socket = place.run(|| Socket::new(Domain::for_address(address), Type::STREAM, None).context("socket")).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SockAddr::from(address)).with_context(|| format!("bind({address})")).unwrap();
    socket
}

/// Takes connections there.
pub(crate) fn listen(place: &Place, address: IpAddr, port: u16) -> TcpListener {
    let socket = bound(place, address, port);
    socket.listen(8).unwrap();
    socket.into()
}

/// A connection between two ports, or nothing, if the SYN is not answered.
pub(crate) fn connect(place: &Place, from: (IpAddr, u16), to: (IpAddr, u16)) -> Option<TcpStream> {
    let socket = bound(place, from.0, from.1);
    match socket.connect_timeout(&SockAddr::from(SocketAddr::from(to)), PATIENCE) {
        Ok(()) => {
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Some(stream)
        }
        Err(error) if error.kind() == ErrorKind::TimedOut => None,
        Err(error) => panic!("{from:?} to {to:?}: {error}"),
    }
}

/// Whether each end is heard by the other.
pub(crate) fn exchange(ends: [&TcpStream; 2]) -> [bool; 2] {
    let [one, other] = ends;
    [(one, other), (other, one)].map(|(mut from, mut to)| {
        from.write_all(b"hello").unwrap();
        match to.read_exact(&mut [0; 5]) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    })
}
