//! The control plane's certificate authority: one key that signs the server's certificate and every user's, and the key
//! pair that service account tokens are signed with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A certificate authority, and the folder where what it issues is written.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

/// Two PEM files.
#[derive(Debug)]
pub struct Identity {
    /// Signed by the authority.
    pub certificate: PathBuf,
    /// Private.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new authority; its own certificate is [`Authority::certificate`].
    pub fn new(directory: &Path) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new()).context("cannot describe a certificate authority")?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        parameters.distinguished_name.push(DnType::CommonName, "netpol-testbed");
        let key = KeyPair::generate().context("cannot make a key")?;
        let issuer =
            CertifiedIssuer::self_signed(parameters, key).context("cannot sign the authority's certificate")?;
        let authority = Self { issuer, directory: directory.to_owned() };
        write(&authority.certificate(), &authority.issuer.pem())?;
        Ok(authority)
    }

    /// The authority's own certificate: what clients trust.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// A certificate for a server under all of `names`, host names and addresses.
    pub fn server(&self, file: &str, names: Vec<String>) -> Result<Identity> {
        let mut parameters = CertificateParams::new(names).context("cannot describe the server's certificate")?;
        parameters.distinguished_name.push(DnType::CommonName, file);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(file, parameters)
    }

    /// A certificate by which the API server knows a user: the common name is the user's, the organization the group.
    pub fn user(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut parameters = CertificateParams::new(Vec::new()).context("cannot describe the user's certificate")?;
        parameters.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, parameters)
    }

    /// A key pair without a certificate, private part in the first file, public part in the second.
    pub fn key_pair(&self, file: &str) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let (private, public) =
            (self.directory.join(format!("{file}.key")), self.directory.join(format!("{file}.pub")));
        write(&private, &key.serialize_pem())?;
        write(&public, &key.public_key_pem())?;
        Ok((private, public))
    }

    fn issue(&self, file: &str, mut parameters: CertificateParams) -> Result<Identity> {
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = parameters.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        let identity = Identity {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
