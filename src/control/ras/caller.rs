//! Whose connection it is. NCCL answers everybody who can connect. Here a caller on the same host
//! must have the same user as this process, or be root, which the kernel's list of sockets says.

use std::net::{IpAddr, SocketAddr, TcpStream};

/// Whether the caller may have an answer. A caller that comes over the network may: `NCCL_RAS_ADDR`
/// must have named an address that is reachable from there.
pub(super) fn is_allowed(stream: &TcpStream) -> bool {
    let (Ok(caller), Ok(own)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    if caller.ip() != own.ip() && !caller.ip().to_canonical().is_loopback() {
        return true;
    }
    let table = if caller.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let Ok(table) = std::fs::read_to_string(table) else { return false };
    // SAFETY: the call has no preconditions.
    let user = unsafe { libc::geteuid() };
    owner(&table, caller, own).is_some_and(|uid| uid == user || uid == 0)
}

/// The user of the socket that connects `local` with `remote`, in the text of `/proc/net/tcp`.
fn owner(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (local, remote) = (in_table(local), in_table(remote));
    table.lines().find_map(|line| {
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = fields.next()? == local && fields.next()? == remote;
        is_it.then(|| fields.nth(4)?.parse().ok())?
    })
}

/// An address as `/proc/net/tcp` shows it: words of 32 bits in the order of this machine.
fn in_table(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
    let ip: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{ip}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_connection_of_the_same_user_is_recognised() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(is_allowed(&accepted), "{address}");
            drop(caller);
        }
    }

    #[test]
    fn the_owner_of_a_connection_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
            uid  timeout inode\n   0: 0100007F:6D7C 0100007F:C350 01 00000000:00000000 00:00000000 \
            00000000     7        0 1\n   1: 0100007F:C350 0100007F:6D7C 01 00000000:00000000 \
            00:00000000 00000000  1001        0 2\n";
        let own: SocketAddr = "127.0.0.1:28028".parse().unwrap();
        let caller: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        let expected = cfg!(target_endian = "little").then_some(1001);
        assert_eq!(owner(table, caller, own), expected);
        assert_eq!(owner(table, "127.0.0.1:50001".parse().unwrap(), own), None);
    }
}
