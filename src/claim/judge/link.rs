//! How launches reach the judge of their shell: a socket without a file, whose name holds the user,
//! the PID namespace, the shell and the directory of claims. Anybody can take that name first: so
//! both ends ask the kernel who the other one is, and a launch that finds somebody else there
//! starts a judge of its own.

use super::super::ancestry::Ancestry;
use super::super::directory::Directory;
use super::super::requester::Requester;
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
use std::sync::Arc;
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
/// So many files a launch may hand over without waiting for an answer.
pub(super) const RESERVED_FILES: usize = 8;
/// The answer of a judge that has no descriptors to spare for another launch.
pub(super) const FULL: &str = "full";

/// Where the judge of a shell is found.
#[derive(Debug, Clone, Copy)]
pub(in crate::claim) struct Address<'a> {
    pub(in crate::claim) shell: ProcessId,
    /// The PID namespace of the shell.
    pub(in crate::claim) namespace: u64,
    /// The directory of its claims.
    pub(in crate::claim) directory: &'a Directory,
}

impl<'a> Address<'a> {
    /// Of the shell that the launch asks for.
    pub(in crate::claim) fn of(requester: &Requester, directory: &'a Directory) -> Self {
        Self {
            shell: requester.shell,
            namespace: requester.namespace,
            directory,
        }
    }

    fn socket(self) -> Option<SocketAddrUnix> {
        let Self {
            shell,
            namespace,
            directory,
        } = self;
        let user = rustix::process::geteuid().as_raw();
        let name = format!("autocvd/{user}/{}/{shell}/{}", namespace, directory.id()?);
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
    pub(super) fn accept(&self) -> impl Iterator<Item = OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let next = move || rustix::net::accept_with(&self.0, flags).ok();
        std::iter::from_fn(next).filter(is_ours)
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

/// A question that a judge has been sent.
#[derive(Debug)]
pub(in crate::claim) struct Question {
    socket: OwnedFd,
    judge: u32,
    /// The directory of claims that the judge serves.
    directory: String,
}

impl Question {
    /// `None` where there is no judge.
    fn send(
        address: Address,
        message: impl FnOnce() -> String,
        files: &[BorrowedFd<'_>],
    ) -> Option<Self> {
        let socket = socket().ok()?;
        rustix::net::connect(&socket, &address.socket()?).ok()?;
        let judge = rustix::net::sockopt::socket_peercred(&socket).ok()?;
        if judge.uid != rustix::process::geteuid() {
            return None;
        }
        send(&socket, &message(), files)?;
        Some(Self {
            socket,
            judge: judge.pid.as_raw_pid().unsigned_abs(),
            directory: address.directory.id()?,
        })
    }

    /// What the judge answers; `None` where it does not answer in time.
    fn answer(&self) -> Option<String> {
        let Self { socket, judge, .. } = self;
        // One that has just begun is not yet named: the launch that started it has ended.
        let is_stopped = || Stat::read(*judge).is_some_and(|stat| stat.is_stopped());
        let answers = is_readable(socket, PROMPT) || !is_stopped() && is_readable(socket, PATIENCE);
        if !answers {
            return None;
        }
        let mut answer = vec![0; MAX_BYTES];
        let (length, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty()).ok()?;
        // A judge that has just ended closes; an answer has at least its first byte.
        String::from_utf8(answer[..length].to_vec())
            .ok()?
            .strip_prefix('=')
            .map(str::to_owned)
    }

    /// Waits until the judge has let go of what is over; `None` where it does not answer in time,
    /// or has no room for another lease.
    pub(in crate::claim) fn attach(self) -> Option<Attached> {
        let has_room = self.answer()? != FULL;
        has_room.then(|| Attached(Arc::new(self)))
    }
}

/// A judge that has answered. It does not end as long as this is open.
#[derive(Debug, Clone)]
pub(in crate::claim) struct Attached(Arc<Question>);

impl Attached {
    /// Gives it a lease in its directory of claims. What has been sent needs no answer: the files
    /// on their way are open, and so locked, until the judge takes them, for which it has reserved
    /// descriptors.
    fn hand_over(&self, directory: &Directory, lease: &Lease) -> bool {
        // The launch may have found another directory in its place.
        directory.id().as_ref() == Some(&self.0.directory)
            && lease.files.len() <= RESERVED_FILES
            && send(&self.0.socket, &keep_message(lease), &descriptors(lease)).is_some()
    }
}

/// What the judge answers; `None` where there is none that answers in time.
fn ask(
    address: Address,
    message: impl FnOnce() -> String,
    files: &[BorrowedFd<'_>],
) -> Option<String> {
    Question::send(address, message, files)?.answer()
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

fn keep_message(lease: &Lease) -> String {
    format!("keep\n{}", lease.to_text())
}

fn descriptors(lease: &Lease) -> Vec<BorrowedFd<'_>> {
    let files = lease.files.iter().map(AsFd::as_fd);
    files.chain(lease.descriptors()).collect()
}

/// Gives a lease to the judge of its shell, one that this launch is attached to or else whichever
/// there is; whether it has taken it.
pub(super) fn hand_over(address: Address, attached: Option<&Attached>, lease: &Lease) -> bool {
    attached.is_some_and(|judge| judge.hand_over(address.directory, lease))
        || ask(address, || keep_message(lease), &descriptors(lease)).is_some()
}

/// Tells the judge of the shell, if it has one, that the shell asks.
pub(in crate::claim) fn tell_asks(
    address: Address,
    requester_pid: u32,
    form: &str,
) -> Option<Question> {
    let message = || {
        // Who else asks at the same time matters only where there is a judge.
        let siblings = proc::children(address.shell.pid);
        let asks = Asks {
            form: form.to_owned(),
            pid: requester_pid,
            siblings,
        };
        format!("asks\n{}", asks.to_text())
    };
    Question::send(address, message, &[])
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
