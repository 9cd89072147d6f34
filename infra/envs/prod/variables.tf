variable "project" {
  type = string
}

variable "region" {
  type    = string
  default = "europe-west4"
}

variable "domain" {
  description = "The domain whose name servers Google's become."
  type        = string
}

variable "host" {
  description = "The public name, within the domain."
  type        = string
}

variable "account" {
  description = "Docker Hub's account that both images are pushed to."
  type        = string
}

variable "worker_version" {
  description = "Version that worker machines begin with until the first deployment, which then decides."
  type        = string
}

variable "admin_ranges" {
  description = "Who may reach the Kubernetes API: name to network, Jenkins' among them."
  type        = map(string)
}

variable "deployer" {
  description = "Who deploys, like `serviceAccount:jenkins@my-project.iam.gserviceaccount.com`; empty: its rights are given elsewhere."
  type        = string
  default     = ""
}

variable "ssh_ranges" {
  description = "Private networks with a route to the workers, for SSH without Google's proxy."
  type        = list(string)
  default     = []
}
