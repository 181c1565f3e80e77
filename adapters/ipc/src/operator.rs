//! Who is at the other end, in words for the audit record: the user, the program, the terminal that it has.
//!
//! Read from /proc when an operator acts, and only then. What cannot be read is left out; nothing is decided by it.

use crate::listener::Peer;

const PASSWD: &str = "/etc/passwd";

/// `eclosion-cli/0.1.0 (pid 42), user ada, program eclosion, on pts/3`
pub(crate) fn described(client: &str, peer: Peer) -> String {
    let mut words = vec![client.to_owned(), format!("user {}", user(peer.uid))];
    if let Some(pid) = peer.pid {
        words.extend(program(pid).map(|program| format!("program {program}")));
        words.extend(terminal(pid).map(|terminal| format!("on {terminal}")));
    }
    words.join(", ")
}

/// By name, where the machine's own list has one.
fn user(uid: u32) -> String {
    let list = std::fs::read_to_string(PASSWD).unwrap_or_default();
    name_in(&list, uid).unwrap_or_else(|| uid.to_string())
}

fn name_in(list: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let named = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    });
    named.map(str::to_owned)
}

fn program(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    (!name.is_empty()).then_some(name)
}

fn terminal(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold blanks and brackets.
    let number = stat.rsplit_once(") ")?.1.split(' ').nth(4)?.parse().ok()?;
    terminal_of(number)
}

/// As `ps` says it; none for a process without one.
fn terminal_of(number: u32) -> Option<String> {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match major {
        136..=143 => Some(format!("pts/{}", minor + (major - 136) * 256)),
        4 if minor < 64 => Some(format!("tty{minor}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_and_a_terminal_is_said_as_ps_does() {
        let list = "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(name_in(list, 1000).as_deref(), Some("ada"));
        assert_eq!(name_in(list, 7), None);
        for (number, expected) in [(34_819, Some("pts/3")), (1025, Some("tty1")), (0, None)] {
            assert_eq!(terminal_of(number).as_deref(), expected, "{number}");
        }
    }

    #[test]
    fn this_process_is_described_by_what_the_system_knows() {
        let peer = Peer { uid: rustix::process::getuid().as_raw(), pid: Some(std::process::id()) };
        let described = described("test/1", peer);
        assert!(described.starts_with("test/1, user ") && described.contains(", program "), "{described}");
        assert_eq!(super::described("x", Peer { uid: u32::MAX, pid: None }), format!("x, user {}", u32::MAX));
    }
}
