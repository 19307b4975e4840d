//! How launches reach the judge of their shell: a socket without a file, whose name holds the user,
//! the PID namespace, the shell and the directory of claims. Anybody can take that name first: so
//! both ends ask the kernel who the other one is, and a launch that finds somebody else there
//! starts a judge of its own.

use super::super::ancestry::Ancestry;
use super::super::directory::Directory;
use super::rules::{Asks, Lease};
use crate::proc::{self, ProcessId, Stat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a judge may take before it is looked at whether it is stopped.
const PROMPT: Duration = Duration::from_millis(10);
/// How long one may take that runs, on a machine with more to do than cores.
const PATIENCE: Duration = Duration::from_millis(300);
/// How many files one message can bring.
const MAX_FILES: usize = 64;
/// How many launches may wait for an answer.
const BACKLOG: i32 = 64;
const MAX_BYTES: usize = 64 << 10;

/// Where the judge of a shell is found.
#[derive(Debug, Clone, Copy)]
pub(in crate::claim) struct Address<'a> {
    pub(in crate::claim) shell: ProcessId,
    /// The PID namespace of the shell.
    pub(in crate::claim) namespace: Option<u64>,
    /// The directory of its claims.
    pub(in crate::claim) directory: &'a Directory,
}

impl Address<'_> {
    fn socket(self) -> Option<SocketAddrUnix> {
        let Self {
            shell,
            namespace,
            directory,
        } = self;
        let user = rustix::process::geteuid().as_raw();
        let name = format!("autocvd/{user}/{}/{shell}/{}", namespace?, directory.id()?);
        SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()
    }
}

/// What a launch has to say.
pub(super) enum Message {
    /// The shell asks for devices.
    Asks(Asks),
    /// A lease to hold.
    Keep(Box<Lease>),
    /// Which lease is around the last of these processes' descendants?
    Inside(Vec<ProcessId>),
    /// Everything that the shell holds is to end.
    Release,
}

pub(super) struct Listener(OwnedFd);

impl Listener {
    pub(super) fn bind(address: Address) -> Option<Self> {
        let socket = socket().ok()?;
        rustix::net::bind(&socket, &address.socket()?).ok()?;
        rustix::net::listen(&socket, BACKLOG).ok()?;
        Some(Self(socket))
    }

    /// Makes the kernel name this process to those who connect.
    pub(super) fn adopt(&self) {
        let _ = rustix::net::listen(&self.0, BACKLOG);
    }

    /// This user's connections.
    pub(super) fn accept(&self) -> Vec<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let next = || rustix::net::accept_with(&self.0, flags).ok();
        std::iter::from_fn(next).filter(is_ours).collect()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

fn is_ours(socket: &OwnedFd) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(socket);
    peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

/// What the judge answers; `None` where there is none that answers in time.
fn ask(
    address: Address,
    message: impl FnOnce() -> String,
    files: &[BorrowedFd<'_>],
) -> Option<String> {
    let socket = socket().ok()?;
    rustix::net::connect(&socket, &address.socket()?).ok()?;
    let judge = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    if judge.uid != rustix::process::geteuid() {
        return None;
    }
    send(&socket, &message(), files)?;
    let judge = judge.pid.as_raw_pid().unsigned_abs();
    // One that has just begun is not yet named: the launch that started it has ended.
    let is_stopped = || Stat::read(judge).is_some_and(|stat| stat.is_stopped());
    let answers = is_readable(&socket, PROMPT) || !is_stopped() && is_readable(&socket, PATIENCE);
    if !answers {
        return None;
    }
    let mut answer = vec![0; MAX_BYTES];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty()).ok()?;
    // A judge that has just ended closes; an answer has at least its first byte.
    String::from_utf8(answer[..length].to_vec())
        .ok()?
        .strip_prefix('=')
        .map(str::to_owned)
}

fn is_readable(socket: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).ok();
    poll(&mut [PollFd::new(socket, PollFlags::IN)], limit.as_ref()).is_ok_and(|ready| ready > 0)
}

fn send(socket: &OwnedFd, text: &str, files: &[BorrowedFd<'_>]) -> Option<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return None;
    }
    let parts = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)
        .ok()
        .map(drop)
}

/// Gives a lease to the judge of its shell; whether it has taken it.
pub(super) fn hand_over(address: Address, lease: &Lease) -> bool {
    let files: Vec<BorrowedFd> = lease.files.iter().map(AsFd::as_fd).collect();
    let text = || format!("keep\n{}", lease.to_text());
    ask(address, text, &files).is_some()
}

/// Tells the judge of the shell, if it has one, that the shell asks.
pub(in crate::claim) fn tell_asks(address: Address, requester_pid: u32, form: &str) {
    ask(
        address,
        || {
            // Who else asks at the same time matters only where there is a judge.
            let siblings = proc::children(address.shell.pid);
            let asks = Asks {
                form: form.to_owned(),
                pid: requester_pid,
                siblings,
            };
            format!("asks\n{}", asks.to_text())
        },
        &[],
    );
}

/// Asks a judge for the lease around a process with these ancestors.
pub(super) fn ask_inside(address: Address, chain: &[ProcessId]) -> Option<Ancestry> {
    let chain: Vec<String> = chain.iter().map(ProcessId::to_string).collect();
    let answer = ask(address, || format!("inside\n{}", chain.join(",")), &[])?;
    answer
        .parse()
        .ok()
        .filter(|ancestry: &Ancestry| ancestry.devices().is_some())
}

/// Has the judge of the shell end all that the shell holds; how many claims these were.
pub(in crate::claim) fn release(address: Address) -> usize {
    let answer = ask(address, || "release\n".to_owned(), &[]);
    answer.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// What a launch has sent; `Ok(None)` is nothing that can be understood, or the end.
pub(super) fn receive(connection: &OwnedFd) -> io::Result<Option<Message>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX_BYTES];
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(connection, parts, &mut ancillary, flags)?;
    let files: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    bytes.truncate(received.bytes);
    let text = String::from_utf8(bytes).unwrap_or_default();
    Ok(parse(&text, files))
}

fn parse(text: &str, files: Vec<OwnedFd>) -> Option<Message> {
    match text.split_once('\n')? {
        ("asks", text) => Asks::parse(text).map(Message::Asks),
        ("keep", text) => Lease::parse(text, files).map(Box::new).map(Message::Keep),
        ("inside", text) => {
            let chain = text.split(',').map(str::parse).collect::<Result<_, _>>();
            chain.ok().map(Message::Inside)
        }
        ("release", _) => Some(Message::Release),
        _ => None,
    }
}

pub(super) fn reply(connection: &OwnedFd, answer: &str) {
    // The launch may have lost its patience.
    let _ = send(connection, &format!("={answer}"), &[]);
}
