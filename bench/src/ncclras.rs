//! `ncclras`, with the options of NCCL's program: asks the process that listens at the RAS port
//! what the communicators do, and prints the answer.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};

/// How long a process may take to reply to a command other than the question.
const REPLY_TIME: Duration = Duration::from_millis(300);
/// How often a process is asked that does not reply, which may be another each time.
const ATTEMPTS: u32 = 20;
/// How much longer than the timeout the answer may take.
const EXTRA_TIME: Duration = Duration::from_secs(10);

/// Asks the processes of a job what their communicators do.
#[derive(Debug, Parser)]
#[command(name = "ncclras", version, disable_help_flag = true)]
struct RasArguments {
    /// The form of the answer
    #[arg(short, long, default_value = "text", ignore_case = true)]
    format: Format,
    /// The host of a process of the job
    #[arg(short = 'h', long, default_value = "localhost")]
    host: String,
    /// The port of NCCL_RAS_ADDR
    #[arg(short, long, default_value_t = 28028)]
    port: u16,
    /// The seconds that processes may take to answer
    #[arg(short, long)]
    timeout: Option<u32>,
    /// Leave nothing out
    #[arg(short, long)]
    verbose: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Runs the program.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let program = std::iter::once(OsString::from("ncclras"));
    let arguments = match RasArguments::try_parse_from(program.chain(arguments.iter().cloned())) {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed terminal does not matter.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match ask(&arguments, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let RasArguments { host, port, .. } = &arguments;
            eprintln!("ncclras: {host}:{port}: {error}");
            if error.kind() == io::ErrorKind::ConnectionRefused {
                eprintln!(
                    "ncclras: no process answers there; the job needs NCCL_RAS_ENABLE=1 (or \
                     NCCL_RAS_ADDR) in its environment, and must run on that host"
                );
            }
            ExitCode::FAILURE
        }
    }
}

/// Copies the answer to `output`.
fn ask(arguments: &RasArguments, output: &mut impl Write) -> io::Result<()> {
    let mut attempt = 1;
    let mut stream = loop {
        match connect(arguments) {
            Err(error) if is_timeout(&error) && attempt < ATTEMPTS => attempt += 1,
            other => break other?,
        }
    };
    let seconds = Duration::from_secs(arguments.timeout.unwrap_or(0).into());
    stream.get_ref().set_read_timeout(Some(seconds + EXTRA_TIME))?;
    if arguments.format == Format::Json {
        command(&mut stream, "SET FORMAT json", "OK")?;
    }
    let verbose = if arguments.verbose { "VERBOSE " } else { "" };
    stream.get_ref().write_all(format!("{verbose}STATUS\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(unexpected("the connection was closed without an answer"));
    }
    output.write_all(&answer)?;
    output.flush()
}

/// Connects to a process that replies.
fn connect(arguments: &RasArguments) -> io::Result<BufReader<TcpStream>> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for address in (&*arguments.host, arguments.port).to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, REPLY_TIME);
        if result.is_ok() {
            break;
        }
    }
    let stream = result?;
    stream.set_read_timeout(Some(REPLY_TIME))?;
    stream.set_write_timeout(Some(REPLY_TIME))?;
    let mut stream = BufReader::new(stream);
    command(&mut stream, "CLIENT PROTOCOL 2", "SERVER PROTOCOL ")?;
    if let Some(seconds) = arguments.timeout {
        command(&mut stream, &format!("TIMEOUT {seconds}"), "OK")?;
    }
    Ok(stream)
}

/// Sends a command, whose reply must begin with `expected`.
fn command(stream: &mut BufReader<TcpStream>, line: &str, expected: &str) -> io::Result<()> {
    stream.get_ref().write_all(format!("{line}\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_line(&mut reply)?;
    if reply.starts_with(expected) {
        return Ok(());
    }
    let reply = if reply.is_empty() { "nothing" } else { reply.trim_end() };
    Err(unexpected(&format!("the reply to {line} is {reply}")))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// What the program sends to a server with these replies, and what it prints.
    fn talk(options: &[&str], replies: &'static [&'static str]) -> (String, io::Result<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let server = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut heard = String::new();
            for reply in replies {
                stream.read_line(&mut heard).unwrap();
                stream.get_ref().write_all(reply.as_bytes()).unwrap();
            }
            heard
        });
        let words = ["ncclras", "-h", "127.0.0.1", "-p", &*port];
        let arguments = RasArguments::try_parse_from(words.iter().chain(options)).unwrap();
        let mut output = Vec::new();
        let result = ask(&arguments, &mut output).map(|()| String::from_utf8(output).unwrap());
        (server.join().unwrap(), result)
    }

    #[test]
    fn the_commands_are_those_of_the_program_of_nccl() {
        let replies = &["SERVER PROTOCOL 2\n", "OK\n", "OK\n", "{\n}\n"];
        let (heard, printed) = talk(&["-f", "JSON", "-t", "7", "--verbose"], replies);
        let commands = "CLIENT PROTOCOL 2\nTIMEOUT 7\nSET FORMAT json\nVERBOSE STATUS\n";
        assert_eq!((&*heard, &*printed.unwrap()), (commands, "{\n}\n"));
        let (heard, printed) = talk(&[], &["SERVER PROTOCOL 3\n", "fine\n"]);
        assert_eq!((&*heard, &*printed.unwrap()), ("CLIENT PROTOCOL 2\nSTATUS\n", "fine\n"));
    }

    #[test]
    fn another_server_and_no_answer_are_failures() {
        let text = |replies| talk(&[], replies).1.unwrap_err().to_string();
        assert_eq!(text(&["HTTP/1.1 400\n"]), "the reply to CLIENT PROTOCOL 2 is HTTP/1.1 400");
        assert!(text(&["SERVER PROTOCOL 2\n", ""]).contains("without an answer"));
    }
}
